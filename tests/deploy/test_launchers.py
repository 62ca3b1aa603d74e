"""The files for `ray up` and Slurm, the shell scripts, and every command that deploy/ names. Nothing is started."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema  # a requirement of ray
import pytest
import ray
import yaml
from ray.scripts.scripts import start

from hse_dist.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = [DEPLOY / "install.sh", DEPLOY / "slurm" / "train.sbatch"]
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.name != "constraints.txt")

# stands in for Slurm's srun and scontrol: writes down what it was asked to run, and runs no Ray
SRUN = """#!/usr/bin/env bash
while [[ ${1:-} == --* ]]; do
    [[ $1 == --nodelist=* ]] && node=${1#*=}
    shift
done
if [[ $1 == hostname ]]; then echo 10.0.0.1; exit; fi
[[ $2 != - ]] || cat > /dev/null
line="$node|$RAY_AUTH_MODE|${#RAY_AUTH_TOKEN}|$*"
printf '%s\\n' "${line//$'\\n'/ }" >> "$LOG"  # one write a call: several of them write at once
[[ $* != *--block* ]] || exec sleep 20
[[ $* == *train.py* ]] || exit 0
for _ in {1..100}; do  # a job runs on nodes that have started
    [[ $(grep -c -e --block "$LOG") -eq 2 ]] && exit "$CODE"
    sleep 0.1
done
exit 99
"""
SCONTROL = "#!/usr/bin/env bash\nprintf 'a1\\na2\\n'\n"


def test_ray_up_holds_to_the_schema_that_ray_ships():
    cluster = yaml.safe_load((DEPLOY / "ray-up" / "aws.yaml").read_text(encoding="utf-8"))
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "idle_timeout": 1}, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    for source in cluster["file_mounts"].values():
        assert source.startswith("~/.ray/") or (ROOT / source).exists()


def test_ray_up_has_room_for_the_job_it_names():
    text = (DEPLOY / "ray-up" / "aws.yaml").read_text(encoding="utf-8")
    nodes = yaml.safe_load(text)["available_node_types"]["gpu"]
    words = re.findall(r"(?:run|data|cluster)\.\w+=\S+", text)
    cluster = load_config(ROOT / re.search(r"configs/[\w-]+\.toml", text)[0], words).cluster
    assert cluster.device == "cuda" and cluster.workers <= nodes["min_workers"] * nodes["resources"]["GPU"]
    assert cluster.cpus_per_worker <= nodes["resources"]["CPU"]


def test_what_ray_up_opens_is_kept_to_the_node_and_to_token_holders():
    cluster = yaml.safe_load((DEPLOY / "ray-up" / "aws.yaml").read_text(encoding="utf-8"))
    starts = [" ".join(cluster[f"{node}_start_ray_commands"]) for node in ("head", "worker")]
    assert all("RAY_AUTH_MODE=token" in start for start in starts) and "--dashboard-host=127.0.0.1" in starts[0]
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse_and_stop_at_the_first_failure(script):
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_commands_name_configurations_and_jobs_that_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:configs/[\w.-]+\.toml|jobs/\w+\.py|deploy/[\w./-]*\w)", text):
        assert (ROOT / name).exists(), name
    assert not re.search(r":latest\b", text)


def test_ray_start_knows_every_option_that_is_used():
    known = {option for parameter in start.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {"--num-cpus", "--num-gpus", "--dashboard-host"}  # rayStartParams, which test_kuberay.py holds to be these
    for path in (DEPLOY / "ray-up" / "aws.yaml", SCRIPTS[1]):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"\bray['\"]? start (.*)", text):
            used |= set(re.findall(r"--[a-z-]+", command))
    assert used <= known and len(used) > 8


@pytest.mark.parametrize("code", [0, 2])
def test_the_slurm_script_starts_a_node_each_and_one_job_that_fits(tmp_path, code):
    """Slurm's own programs are stand-ins: what is tested is the script's arithmetic, quoting and exit code."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    environment = {**os.environ, **slurm, "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_SUBMIT_DIR": str(tmp_path)}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "CODE": str(code)}
    script = [str(SCRIPTS[1]), "configs/ml-100k.toml", "run.folder=/shared/my runs/x"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr

    calls = [line.split("|", 3) for line in (tmp_path / "log").read_text().splitlines()]
    assert {(mode, length) for _, mode, length, _ in calls} == {("token", "64")}
    asked = {node: words for node, _, _, words in calls if "--block" in words}
    assert asked.keys() == {"a1", "a2"} and "--head" in asked["a1"] and "--port=20007" in asked["a1"]
    assert "--address='10.0.0.1:20007'" in asked["a2"] and "--num-gpus='4'" in asked["a2"]
    (job,) = [words for _, _, _, words in calls if "train.py" in words]
    assert "jobs/train.py configs/ml-100k.toml" in job and job.rstrip().endswith("run.folder=/shared/my runs/x")
    assert "cluster.device=cuda cluster.workers=8 cluster.cpus_per_worker=8" in job
