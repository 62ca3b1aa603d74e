"""What a run says while it runs: `metrics.jsonl`, the sinks that `metrics.sinks` names, a line for people.

In: numbers of rank 0. Out: one JSON line an event (`kind` = train, validate, rewire or bad_file; each with its step),
the same numbers in the sinks, and words. A resumed run first forgets what came after its checkpoint, so no step
is counted twice: it puts a new file in the place of the old one, so that a worker of before that still lives writes
where nobody reads.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hse_dist.config import MetricsSettings
from hse_dist.files import new_file
from hse_dist.train.sinks import Run, Sink, open_sinks


def keep_until(path: Path, step: int) -> list[str]:
    """Put a new file in the place of `path` (JSON lines with a `step`) with the lines up to and including `step`, which
    are returned."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    kept = [line for line in lines if _step(line) <= step]
    with new_file(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return kept


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return float("inf")  # torn by a crash: it belongs to no step


class MetricsLog:
    """Writes for rank 0; for other ranks every call does nothing.

    Args:
        folder: the run folder.
        first: whether this is the rank that writes.
        step: of the checkpoint that the run goes on from; -1 for a new one.
        sinks: where else the numbers go.
        settings: of the run, for sinks that show them.

    Attributes:
        bad_files: those that have a line.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first: bool,
        step: int,
        sinks: MetricsSettings | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.bad_files: set[str] = set()
        self._file: IO[str] | None = None
        self._sinks: list[Sink] = []
        if not first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [json.loads(line) for line in keep_until(folder / "metrics.jsonl", step)]
        self.bad_files |= {str(line.get("path")) for line in kept if line.get("kind") == "bad_file"}
        # held open for its whole life: by its path it might be the file of another worker
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._sinks = open_sinks(sinks or MetricsSettings(), Run(folder, step, kept, settings))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one event; in the sinks a dictionary is a number a key."""
        if self._file is None:
            return
        self._file.write(json.dumps({"kind": kind, "step": step, **values}, sort_keys=True) + "\n")
        for sink in self._sinks:
            sink.write(kind, step, values)

    def observe_step(self, seconds: float) -> None:
        """Tell the sinks how long a step of this rank took."""
        for sink in self._sinks:
            sink.observe_step(seconds)

    def sync(self) -> None:
        """Bring the lines to the disk: a checkpoint of their steps is about to be."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the sinks."""
        if self._file is not None:
            self._file.close()
        for sink in self._sinks:
            sink.close()


@dataclass
class Waiting:
    """How much of its time a rank waits for batches; what is neither waiting nor a step (validations, checkpoints)
    does not count."""

    waited: float = 0.0
    worked: float = 0.0

    def add(self, waited: float, worked: float) -> None:
        """Seconds of a step and of the wait before it."""
        self.waited += waited
        self.worked += worked

    @property
    def share(self) -> float:
        """Of the time so far."""
        return self.waited / max(self.waited + self.worked, 1e-9)


class Rates:
    """What happened between two lines, and when it will be over."""

    def __init__(self, step: int, steps: int) -> None:
        self.steps, self.began, self.began_at = steps, step, time.perf_counter()
        self.last, self.last_at = step, self.began_at

    def line(
        self, step: int, loss: float | None, users: int, live: int, wire_bytes: dict[str, int], wait_share: float
    ) -> tuple[dict[str, Any], str]:
        """The values of a training line, and the same in words.

        Args:
            loss: None where all steps were left out.
            users: of all ranks since the last line. wire_bytes: since the start.
        """
        now = time.perf_counter()
        seconds = max(now - self.last_at, 1e-9)
        values = {
            "loss": loss,
            "steps_per_second": (step - self.last) / seconds,
            "users_per_second": users / seconds,
            "live_entries": live,
            "wire_bytes": wire_bytes,
            "wait_share": wait_share,
            "eta_seconds": (self.steps - step) * (now - self.began_at) / max(step - self.began, 1),
        }
        self.last, self.last_at = step, now
        sent = sum(wire_bytes.values()) / 1e6
        shown = "none" if loss is None else f"{loss:.4f}"
        words = (
            f"step {step}/{self.steps}  loss {shown}  {values['steps_per_second']:.1f} steps/s  "
            f"{values['users_per_second']:.0f} users/s  {live} live  {sent:.1f} MB on the wire  "
            f"{100 * wait_share:.1f} % waiting  {values['eta_seconds']:.0f} s to go"
        )
        return values, words
