"""The examination: what can be looked at here, and what needs a process of its own.

In: folders, an address, whether CUDA is wanted. Out: findings in a fixed order. The probes run side by side while this
process looks at versions, folders and disk; each has a limit, and a probe that dies or hangs is a finding.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hse_dist.doctor.finding import Finding
from hse_dist.doctor.machine import examine_machine
from hse_dist.doctor.probe import TOGETHER
from hse_dist.doctor.versions import INSTALL, examine_versions

LIMIT_SECONDS = 90.0
WORDS = 300
"""Most characters of what a dead probe said last."""


@dataclass(frozen=True)
class Probe:
    """A process that is under way; `mend` is for the case that it does not come to an end."""

    check: str
    process: subprocess.Popen[str]
    mend: str


def start(check: str, mend: str, *words: str) -> Probe:
    """Start a probe; its own package is the one that runs here."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "hse_dist.doctor.probe", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
    )
    return Probe(check, process, mend)


def finish(probe: Probe, deadline: float) -> list[Finding]:
    """What a probe found, or how it ended."""
    try:
        out, err = probe.process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        end(probe)
        return [Finding(probe.check, "failed", f"no answer within {LIMIT_SECONDS:.0f} s", probe.mend)]
    if probe.process.returncode == 0:
        return [Finding(**one) for one in json.loads(out.splitlines()[-1])]
    return [Finding(probe.check, "failed", death(probe.process.returncode, err), probe.mend)]


def death(code: int, said: str) -> str:
    """How a process ended, in words: by which signal, or by which exception."""
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    if code < 0:
        return f"died of {signal.Signals(-code).name}: {last[:WORDS]}"
    return last[:WORDS]


def end(probe: Probe) -> None:
    """End a probe and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(probe.process.pid, signal.SIGKILL)
    probe.process.communicate()


def examine(folders: list[str], address: str = "", *, cuda: bool = False) -> list[Finding]:
    """Examine everything.

    Args:
        folders: that a run writes to.
        address: of a Ray cluster; empty: one is started for a moment.
        cuda: whether the lack of a CUDA device is a failure.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    probes = [
        start("torch, fbgemm, torchrec", INSTALL, "libraries"),
        start("collectives", TOGETHER, "ranks"),
        start("ray", "Read Ray's logs: session_latest/logs under RAY_TMPDIR, or /tmp/ray.", "ray", "--at", address),
    ]
    try:
        found = examine_versions()
        machine = examine_machine(folders)
        found += [one for probe in probes for one in finish(probe, deadline)] + machine
    finally:
        for probe in probes:
            if probe.process.poll() is None:
                end(probe)
    return found + [_no_cuda()] * (cuda and not _has_cuda(found))


def _has_cuda(found: list[Finding]) -> bool:
    return any(one.check == "fbgemm on cuda" and one.status == "ok" for one in found)


def _no_cuda() -> Finding:
    return Finding(
        "cluster.device", "failed", "is cuda, and no CUDA device answers here", "Use cpu, or another machine."
    )
