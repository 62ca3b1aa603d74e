"""Jobs on a real head: results, exit codes, Ctrl-C, and Ray's own command; nothing of it is left."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hse_dist.processes import descendants, lives
from hse_dist.soak.settings import SETTINGS
from hse_dist.testing.head import Head, head

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def there() -> Iterator[Head]:
    others = {one.pid for one in descendants(os.getpid())}  # a cluster of other tests, perhaps
    with head() as started:
        family = {one.pid for one in descendants(os.getpid())} - others
        assert family
        yield started
    assert not any(map(lives, family)), "processes are left"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "x.toml").write_text(SETTINGS.format(folder="runs").replace("workers = 2", "workers = 0"))
    return tmp_path


def start(there: Head, place: Path, *words: str, **more: object) -> subprocess.Popen[str]:
    environment = {**os.environ, **there.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "hse_dist.cli", "submit", "x.toml", "--address", there.address, *words],
        cwd=place,
        env=environment,
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},  # type: ignore
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.1)


@pytest.mark.ray
def test_a_job_ends_here_as_it_ends_there(there, place):
    good = start(there, place, "--job", "prepare", "data.synthetic.users=200")
    bad = start(there, place, "--job", "evaluate")
    out, err = good.communicate(timeout=60)
    assert good.returncode == 0, err
    assert json.loads(out)["users"]["train"] > 0 and "prepare:" in err
    assert (place / "runs" / "data").is_dir() and not list(place.glob(".hse-*"))
    out, err = bad.communicate(timeout=60)
    assert (bad.returncode, out) == (2, "")
    assert "There is no run in" in err and "Traceback" not in err


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_on_a_terminal_stops_the_job_with_a_checkpoint(there, place):
    ours, theirs = pty.openpty()
    job = start(there, place, "train.epochs=100000", stdin=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    wait_for(place / "runs" / "clean" / "metrics.jsonl", 60)
    job.send_signal(signal.SIGINT)
    try:
        while True:
            said += os.read(ours, 4096)
            if b"[y/N] " in said:
                os.write(ours, b"y\n")
                break
        while True:
            said += os.read(ours, 4096)
    except OSError:  # how the end of a terminal looks
        pass
    assert job.wait(60) == 143, said.decode()
    assert b"with a checkpoint" in said and b"Traceback" not in said
    os.close(ours)
    assert job.stdout is not None and job.stdout.read() == ""
    job.stdout.close()


@pytest.mark.slow
@pytest.mark.ray
def test_without_a_terminal_the_job_goes_on(there, place):
    job = start(there, place, "train.epochs=100000")
    wait_for(place / "runs" / "clean" / "metrics.jsonl", 60)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=30)
    assert (job.returncode, out) == (130, "") and "goes on" in err and "ray job stop --address" in err
    before = (place / "runs" / "clean" / "metrics.jsonl").stat().st_size
    time.sleep(5)
    assert (place / "runs" / "clean" / "metrics.jsonl").stat().st_size > before


@pytest.mark.slow
@pytest.mark.ray
def test_rays_own_command_runs_a_job_of_a_checkout(there, tmp_path):
    words = [f"run.folder={tmp_path}/run", f"data.folder={tmp_path}/data", "train.epochs=1", "cluster.workers=1"]
    ray = [str(Path(sys.executable).parent / "ray"), "job", "submit"]
    done = subprocess.run(
        [
            *ray,
            "--address",
            there.address,
            "--working-dir",
            ".",
            "--",
            "python",
            "jobs/train.py",
            "configs/demo.toml",
            *words,
        ],
        cwd=ROOT,
        env={**os.environ, **there.environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").exists()
