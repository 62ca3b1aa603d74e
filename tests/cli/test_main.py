"""Exit codes, messages and the one JSON line, whatever a job does or prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hse_dist.cli.commands import COMMANDS
from hse_dist.cli.main import main
from hse_dist.errors import NumericError, UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def job(monkeypatch):
    """`job(function)` puts a function into the place of the job `train`, and runs that; its exit code."""
    monkeypatch.delenv("HSE_DEBUG", raising=False)
    monkeypatch.setattr("hse_dist.cli.main.set_up_logging", lambda: None)

    def run(function):
        monkeypatch.setitem(COMMANDS, "train", function)
        return main(["train", "x.toml"])

    return run


def failing(error: BaseException):
    def function(words):
        print("noise")
        raise error

    return function


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # as `ray job submit --working-dir .` sets it
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_result_is_all_that_standard_output_gets(job, capfd):
    def function(words):
        print("from Python")
        os.write(1, b"from C++\n")
        subprocess.run(["echo", "from a child"], check=True)
        return {"run": "rüns", "loss": float("nan"), "list": (1, {"deep": float("-inf")}), "none": None}

    assert job(function) == 0
    shown = capfd.readouterr()
    assert shown.out == '{"run": "rüns", "loss": null, "list": [1, {"deep": null}], "none": null}\n'
    assert all(text in shown.err for text in ("from Python", "from C++", "from a child"))
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("The file is gone.", cause="Find it.", setting="a.b", value=3), 2, "(setting a.b = 3)"),
        (NumericError("NaN in row 7."), 1, "hse-dist train: NaN in row 7."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(0), 130, "interrupted"),
    ],
)
def test_expected_failure_is_one_message_without_traceback(job, capfd, error, code, message):
    assert job(failing(error)) == code
    shown = capfd.readouterr()
    assert shown.out == ""
    assert message in shown.err and "Traceback" not in shown.err


def test_debug_shows_the_traceback(job, capfd, monkeypatch):
    def function(words):
        monkeypatch.setenv("HSE_DEBUG", "1")
        raise UserError("The file is gone.")

    assert job(function) == 2
    assert "Traceback" in capfd.readouterr().err


def test_bug_keeps_its_traceback_and_leaves_standard_output_alone(job, capfd):
    with pytest.raises(ZeroDivisionError):
        job(failing(ZeroDivisionError()))
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_mistake_in_a_configuration_comes_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "x.toml").write_text("[train]\nepoch = 3\n")
    code = (
        "import sys; from hse_dist.cli.main import main; code = main(sys.argv[1:]);"
        "print([name for name in ('torch', 'ray', 'numpy', 'pyarrow') if name in sys.modules], code)"
    )
    for job in ("prepare", "train", "evaluate", "export", "demo"):
        done = python("-c", code, job, str(tmp_path / "x.toml"), "train.epochs=2")
        assert done.stdout == "[] 2\n"
        assert "train.epoch: unknown setting" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("job", ["prepare", "train", "evaluate", "export", "recommend", "benchmark"])
def test_script_is_the_job_of_its_name(job):
    done = python(f"jobs/{job}.py", "--help")
    assert done.returncode == 0 and done.stdout == python("-m", "hse_dist.cli", job, "--help").stdout
    assert done.stdout.startswith(f"usage: hse-dist {job} ")


def test_script_ends_with_the_exit_code_of_its_job(tmp_path):
    missing = tmp_path / "missing.toml"
    done = python("jobs/train.py", str(missing))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"hse-dist train: There is no configuration file {missing}.\n"


def test_log_goes_to_standard_error_and_result_is_the_last_line():
    code = (
        "import logging, sys; from hse_dist.cli import main as module;"
        "module.COMMANDS['train'] = lambda words: logging.getLogger('hse_dist.x').info('half way') or {'steps': 3};"
        "sys.exit(module.main(['train', 'x.toml']))"
    )
    done = python("-c", code)
    assert done.returncode == 0 and json.loads(done.stdout) == {"steps": 3}
    assert done.stderr.endswith(" I half way\n")
