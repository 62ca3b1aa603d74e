"""Installed versions against `deploy/constraints.txt`.

In: what is installed, by name, and what the file pins. Out: findings. The first three must fit each other to the digit,
or no operator loads; Ray and Arrow write files and messages that other versions may read otherwise. Of the rest another
version is a warning. A pin counts only where its package is installed, so one file serves both devices.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

from hse_dist.doctor.finding import Finding

FILE = Path(__file__).resolve().parents[2] / "deploy" / "constraints.txt"
EXACT = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "ray", "pyarrow")
NEEDED = ("torch", "torchrec", "ray", "pyarrow", "numpy", "pydantic", "rich", "scipy", "fsspec")
KERNELS = ("fbgemm-gpu-cpu", "fbgemm-gpu")
"""Exactly one of them: they share file names."""
PYTHON = (3, 11)
INSTALL = "Run `make install`, or deploy/install.sh with the DEVICE that you have."


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Name → version of `name==version` lines."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==", 1) for line in lines if "==" in line)
    return {normal(name.strip()): version.strip() for name, version in pairs}


def installed() -> dict[str, str]:
    """Name → version of what this interpreter finds."""
    return {normal(one.metadata["Name"]): one.version for one in distributions() if one.metadata["Name"]}


def check_versions(there: Mapping[str, str], pinned: Mapping[str, str]) -> list[Finding]:
    """One finding for what must be exact, one for the rest; a local part of a version (`+cpu`) does not count."""
    differ = {
        name: f"{name} {there[name]}, pinned {version}"
        for name, version in pinned.items()
        if name in there and there[name].partition("+")[0] != version
    }
    missing = [f"{name} is missing" for name in NEEDED if name not in there]
    kernels = [name for name in KERNELS if name in there]
    if not kernels:
        missing.append(f"{' or '.join(KERNELS)} is missing")
    elif len(kernels) > 1:
        missing.append(f"{' and '.join(kernels)} overwrite each other's files")
    wrong = missing + [text for name, text in differ.items() if name in EXACT]
    exact = ", ".join(f"{name} {there[name]}" for name in EXACT if name in there)
    others = [text for name, text in differ.items() if name not in EXACT]
    return [
        Finding("versions", "failed", "; ".join(wrong), INSTALL) if wrong else Finding("versions", "ok", exact),
        Finding("other packages", "warning", "; ".join(others), INSTALL)
        if others
        else Finding("other packages", "ok", f"{sum(name in there for name in pinned)} as pinned"),
    ]


def check_python(version: tuple[int, int]) -> Finding:
    """The interpreter; the pins were made for one minor version."""
    text = ".".join(map(str, version))
    if version < PYTHON:
        return Finding("python", "failed", f"Python {text} is too old", "Use Python 3.11.")
    if version > PYTHON:
        return Finding("python", "warning", f"Python {text}: nobody has run the tests on it", "Use Python 3.11.")
    return Finding("python", "ok", f"Python {text}")


def examine_versions() -> list[Finding]:
    """This interpreter and its packages."""
    found = [check_python(sys.version_info[:2])]
    if not FILE.exists():
        return [
            *found,
            Finding("versions", "warning", f"there is no {FILE}", "Run from a checkout to compare versions."),
        ]
    return found + check_versions(installed(), pins(FILE.read_text(encoding="utf-8")))
