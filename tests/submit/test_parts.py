"""What is decided before and after a job runs: addresses, paths, packages, the log, the outcome."""

from __future__ import annotations

import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from hse_dist.cli.parser import parse
from hse_dist.errors import HseError, ResourceError, RunFolderError
from hse_dist.submit.address import job_server
from hse_dist.submit.install import CUDA, choose, pip_field, requirement_name
from hse_dist.submit.log_lines import LogLines
from hse_dist.submit.outcome import outcome
from hse_dist.submit.package import CONFIG, make_package
from hse_dist.submit.paths import absolute
from hse_dist.submit.server import State
from hse_dist.submit.shared import VARIABLE, check_shared, mark, told

ROOT = Path(__file__).resolve().parents[2]


def test_the_address_is_the_first_that_takes_jobs():
    environment = {"RAY_API_SERVER_ADDRESS": "http://b:1", "RAY_ADDRESS": "http://d:1"}
    assert job_server("http://a:1/", "http://c:1", environment) == "http://a:1"
    assert job_server(None, "http://c:1", environment) == "http://b:1"
    assert job_server(None, "http://c:1", {"RAY_ADDRESS": "http://d:1"}) == "http://c:1"
    assert job_server(None, "10.0.0.1:6379", {"RAY_ADDRESS": "https://d:1"}) == "https://d:1"


@pytest.mark.parametrize("address", ["ray://a:10001", "a:6379", "http://", "http://a:x", "auto"])
def test_an_address_that_takes_no_jobs_is_one_message(address):
    with pytest.raises(ResourceError, match=r"takes no jobs[\s\S]*--address"):
        job_server(address, None, {})
    with pytest.raises(ResourceError, match="--address http://HEAD:8265"):
        job_server(None, "10.0.0.1:6379", {"RAY_ADDRESS": "10.0.0.1:6379"})


def test_relative_paths_become_absolute_and_shared(make_config):
    config = make_config(run={"folder": "runs/x"}, data={"folder": "/data/x", "source": "logs/*.parquet"})
    found = absolute(config, Path("/home/me"))
    assert found.overrides == ['run.folder="/home/me/runs/x"', 'data.source="/home/me/logs/*.parquet"']
    assert found.shared == {"run.folder": Path("/home/me/runs/x")}
    taught = make_config(run={"folder": "/x"}, data={"folder": "/d"}, train={"teacher": "wide"})
    assert absolute(taught, Path("/h")).shared == {"train.teacher": Path("/h/wide")}
    own = {"x": {"of": "user", "column": "c", "source": "people.csv"}, "y": {"of": "item", "column": "c"}}
    found = absolute(make_config(data={"folder": "/d", "features": own}), Path("/h"))
    assert found.overrides == ['data.features.x.source="/h/people.csv"']
    for source in ("catalog:ml-100k", "s3://bucket/x", "$HSE_DATA/x", ""):
        assert absolute(make_config(data={"folder": "/d", "source": source}), Path("/h")).overrides == []


def test_a_folder_that_the_cluster_does_not_see_is_refused(tmp_path):
    marks = mark({"run.folder": tmp_path / "runs" / "x"}, "job")
    environment = {VARIABLE: told(marks)}
    assert marks["run.folder"] == tmp_path / ".job"
    check_shared(environment)
    assert environment == {} and not marks["run.folder"].exists()
    with pytest.raises(RunFolderError, match=r"does not see.*run\.folder"):
        check_shared({VARIABLE: told(marks)})
    check_shared({})


def test_lines_are_shown_once_and_the_result_is_held_back():
    shown: list[str] = []
    lines = LogLines(shown.append)
    for piece in ("one\ntw", 'o\n{"a": 1}\nthr'):
        lines.take(piece)
    lines.again()
    lines.take('one\ntwo\n{"a": 1}\nthree\n{"steps"')
    assert shown == ["one", "two", '{"a": 1}', "three"]
    lines.take(": 3}\n")
    assert lines.end() == {"steps": 3} and shown[-1] == "three"
    broken = LogLines(shown.append)
    broken.take("No module named hse_dist\n{not json}\n")
    assert broken.end() is None and broken.lacks_package and shown[-1] == "{not json}"


@pytest.mark.parametrize(
    ("state", "code", "message"),
    [
        (State("FAILED", 2), 2, "exit code 2"),
        (State("FAILED", 1), 1, "exit code 1"),
        (State("FAILED", 143), 143, "exit code 143"),
        (State("FAILED", 75), 75, "exit code 75"),
        (State("FAILED", -9), 137, "SIGKILL.*memory"),
        (State("FAILED", None, "Traceback\n  deep\nno such package\n"), 1, "did not start.*no such package"),
        (State("STOPPED"), 143, "was stopped"),
        (State("SUCCEEDED", 0), 1, "no result"),
    ],
)
def test_the_exit_code_is_the_jobs_own(state, code, message):
    with pytest.raises(HseError, match=message) as caught:
        outcome(state, None)
    assert caught.value.exit_code == code
    assert outcome(State("SUCCEEDED", 0), {"steps": 3}) == {"steps": 3}


def test_options_of_the_job_come_last_and_are_looked_at(capsys):
    words = parse(["submit", "x.toml", "a.b=1", "--job", "evaluate", "c.d=2", "--", "--split", "valid"])
    assert (words.overrides, words.options) == (["a.b=1", "c.d=2"], ["--split", "valid"])
    for wrong in (["--job", "evaluate", "--", "--splat"], ["--job", "recommend"], ["--torch-index", "http://x"]):
        with pytest.raises(SystemExit) as end:
            parse(["submit", "x.toml", *wrong])
        assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("device", "other"), [("cpu", "fbgemm-gpu"), ("cuda", "fbgemm-gpu-cpu")])
def test_what_is_installed_is_exact_and_without_dependencies(device, other):
    field = pip_field(ROOT, device)
    names = {requirement_name(one) for one in field["packages"]}
    assert "--no-deps" in field["pip_install_options"] and all("==" in one for one in field["packages"])
    assert {"torch", "torchrec", "pyarrow", "pydantic", "tensordict"} <= names
    assert not names & {"ray", "pytest", "mypy", other}
    text = (ROOT / "deploy" / "constraints.txt").read_text(encoding="utf-8")
    assert any(map(CUDA.match, field["packages"]))
    assert not any(map(CUDA.match, choose(text, set(), device, small_torch=True)))


def test_the_upload_is_small_whatever_lies_about(tmp_path):
    clone = tmp_path / "clone"
    listed = subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    (clone / ".rayignore").write_bytes((ROOT / ".rayignore").read_bytes())
    fresh = make_package(tmp_path / "fresh.zip", "[run]\n", clone)
    assert fresh < 2_500_000
    for folder in (
        "runs/x",
        ".venv/lib",
        "build",
        "dist",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".hypothesis",
    ):
        (clone / folder).mkdir(parents=True, exist_ok=True)
        (clone / folder / "large").write_bytes(b"x" * 1000)
    (clone / "hse_dist" / "native" / "_kernels.so").write_bytes(b"x" * 1000)
    (clone / "hse_dist" / "__pycache__").mkdir()
    (clone / "hse_dist" / "__pycache__" / "x.pyc").write_bytes(b"x" * 1000)
    make_package(tmp_path / "used.zip", "[run]\n", clone)
    with zipfile.ZipFile(tmp_path / "fresh.zip") as one, zipfile.ZipFile(tmp_path / "used.zip") as other:
        assert set(one.namelist()) == set(other.namelist())
        assert {"hse_dist/cli/main.py", "jobs/train.py", "configs/demo.toml", CONFIG} <= set(one.namelist())
        assert not any(name.startswith((".git/", "tests/", "runs/")) for name in one.namelist())
        assert tomllib.loads(one.read(CONFIG).decode()) == {"run": {}}


def test_the_configuration_alone_is_a_kilobyte(tmp_path):
    assert make_package(tmp_path / "x.zip", "[run]\n") < 1000
