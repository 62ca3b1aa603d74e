"""What a cluster without the image installs for a job: the packages of deploy/constraints.txt, by Ray's own pip.

In: the texts of constraints.txt and pyproject.toml, and a device. Out: the field `pip` of a runtime_env. All of a
device's packages are named with their exact versions, so pip may leave dependencies alone (`--no-deps`): torchrec
declares fbgemm-gpu, whose files would overwrite those of fbgemm-gpu-cpu (as in deploy/install.sh).
Ray is not among them: a job runs with its cluster's own.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from hse_dist.errors import ConfigError

CUDA = re.compile(r"nvidia-|cuda-|triton")
"""What the usual wheel of torch needs on Linux, and one of an index of CPU wheels does not."""
KERNELS = {"cpu": "fbgemm-gpu-cpu", "cuda": "fbgemm-gpu"}
CONSTRAINTS = "deploy/constraints.txt"


def pip_field(checkout: Path, device: str, torch_index: str | None = None) -> dict[str, Any]:
    """The field `pip` for the versions of a checkout.

    Args:
        torch_index: package index with wheels of torch for the CPU alone, beside the usual index.

    Raises:
        ConfigError: this is no checkout.
    """
    try:
        constraints = (checkout / CONSTRAINTS).read_text(encoding="utf-8")
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"What is to be installed cannot be read: {error}.",
            cause="The folder must be a checkout of this project.",
            setting="--working-dir",
            value=str(checkout),
        ) from None
    tools = {requirement_name(one) for one in project["project"]["optional-dependencies"]["dev"]}
    options = ["--no-deps", "--disable-pip-version-check", "--no-cache-dir"]
    options += ["--extra-index-url", torch_index] if torch_index else []
    packages = choose(constraints, tools, device, small_torch=torch_index is not None)
    return {"packages": packages, "pip_check": False, "pip_install_options": options}


def choose(constraints: str, tools: set[str], device: str, *, small_torch: bool) -> list[str]:
    """Those lines of `constraints` that a job needs: neither Ray, nor `tools`, nor the other device's kernels."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    other = {name for key, name in KERNELS.items() if key != device}
    leave = tools | other | {"ray"}
    found = [line for line in lines if line and requirement_name(line) not in leave]
    return [line for line in found if not (small_torch and CUDA.match(line))]


def requirement_name(text: str) -> str:
    """The name in a requirement, in lower case."""
    return re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0].lower()
