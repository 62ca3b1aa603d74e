"""A cluster on this machine: what it refuses, how it ends, and that a run survives the loss of a node, bit by bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hse_dist.cli.main import main
from hse_dist.config import load_config
from hse_dist.processes import descendants, lives
from hse_dist.soak.compare import differences
from hse_dist.soak.settings import write_settings


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_settings(tmp_path)


class Simulation:
    """The command, as a process, and all that it has started."""

    def __init__(self, settings: Path, *words: str) -> None:
        self.log = settings.with_name("simulation.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hse_dist.cli", "simulate", str(settings), *words],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
                # what a shell runs in the background does not hear Ctrl-C, nor does what that starts
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.family: set[int] = set()

    def wait(self, pattern: str, seconds: float) -> None:
        """Until the log has what this regular expression says."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.log.read_text()):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            self.family |= {one.pid for one in descendants(self.process.pid)}
            time.sleep(0.1)

    def end(self, seconds: float) -> tuple[int, Any]:
        """Its exit code and result; nothing of it may be left."""
        out, _ = self.process.communicate(timeout=seconds)
        assert not any(map(lives, self.family)), "processes are left"
        return self.process.returncode, json.loads(out) if out else None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.workers=4"], "3 nodes have 3 places"),
        (["cluster.workers=0"], "3 nodes have 3 places"),
        (["cluster.device=cuda"], "simulated nodes have no GPU"),
        (["cluster.address=10.0.0.1:6379"], "leave out cluster.address"),
        (["--nodes", "1", "--kill-node", "3"], "a node that is killed is one beside the head: --nodes 2 or more"),
        (["--nodes", "1", "--part-node", "3"], "a node that is parted is one beside the head: --nodes 2 or more"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_before_anything_starts(settings, capfd, words, message):
    assert main(["simulate", str(settings), *words]) == 2
    shown = capfd.readouterr()
    assert message in shown.err and "Traceback" not in shown.err and shown.out == ""


@pytest.mark.ray
def test_sigterm_ends_all_nodes(settings):
    simulation = Simulation(settings, "--nodes", "2")
    simulation.wait("2 nodes are up: 127.0.0.1, 127.0.0.2", 60)
    assert len(simulation.family) > 3
    simulation.process.send_signal(signal.SIGTERM)
    assert simulation.end(60) == (143, None)


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_leaves_a_checkpoint_and_no_process(settings):
    simulation = Simulation(settings, "--nodes", "2")
    simulation.wait(r"step \d+/", 120)
    simulation.process.send_signal(signal.SIGINT)
    assert simulation.end(90) == (130, None)
    assert "with a checkpoint" in simulation.log.read_text()
    assert "Traceback" not in simulation.log.read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_a_limit_that_is_over_ends_the_run(settings):
    simulation = Simulation(settings, "--nodes", "2", "--minutes", "1", "train.epochs=100000")
    simulation.wait(r"step \d+/", 55)
    assert simulation.end(120) == (1, None)
    assert "did not end within 1 minutes" in simulation.log.read_text()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_run_that_loses_a_node_ends_as_one_that_lost_none(settings, tmp_path):
    words = ["train.epochs=24", "cluster.timeout_seconds=60", "cluster.workers=3"]
    for how, option in (("killed", "--kill-node"), ("parted", "--part-node")):
        simulation = Simulation(settings, *words, option, "60", f"run.folder={tmp_path}/{how}")
        simulation.wait("Recovered", 400)
        code, result = simulation.end(400)
        text = simulation.log.read_text()
        assert code == 0, text[-3000:]
        assert ("found itself given up, and has ended" in text) == (how == "parted")
        lost = result["lost"]
        assert lost["how"] == how and lost["node"] != "127.0.0.1" and lost["replacement"] == "127.0.0.4"
        assert (
            lost["step"] >= 60 and lost["recovered_seconds"] > lost["noticed_seconds"] > 0 and len(lost["ranks"]) == 1
        )
        assert sorted(map(len, result["nodes"].values())) == [1, 1, 2]  # spread: a rank each, and the server
        assert "SparsityServer" in result["nodes"]["127.0.0.1"] and lost["node"] not in result["nodes"]

    clean = subprocess.run(
        [sys.executable, "-m", "hse_dist.cli", "simulate", str(settings), *words, f"run.folder={tmp_path}/clean"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=200,
        check=True,
    )
    assert json.loads(clean.stdout)["lost"] is None
    kept, *lost = (
        load_config(settings, [*words, f"run.folder={tmp_path}/{name}"]) for name in ("clean", "killed", "parted")
    )
    assert [differences(kept, one) for one in lost] == [[], []]
