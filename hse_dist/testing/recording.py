"""The job `train`, whose workers write down what they train on; a program of its own, that joins any cluster.

In: the words of `hse-dist`. Out: as that; and `recorded/GROUP-RANK.jsonl` in the run folder, a line a step: the number
of ranks, the step, and the histories of the rank's batch. A step takes at least `SECONDS`, so that a cluster can change
under a small run.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from hse_dist.cli.main import main
from hse_dist.data.batch import Batch
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.train import driver
from hse_dist.train.step import StepResult, Trainer
from hse_dist.train.worker import train_worker

SECONDS = 0.15
FOLDER = "recorded"


@dataclass(frozen=True)
class Recorded:
    """What a worker group trained on: how many ranks it had, and the histories of each of its steps."""

    ranks: int
    steps: dict[int, list[tuple[int, ...]]]


def recording_worker(ranks: Ranks, arguments: dict[str, Any]) -> dict[str, Any]:
    """`train_worker`, written down."""
    name: list[Any] = [f"{time.time_ns()}-{uuid.uuid4().hex}"]
    dist.broadcast_object_list(name)
    folder = RunFolder(arguments["config"]).path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    original = Trainer.step

    def step(self: Trainer, batch: Batch, step: int, following: Batch | None = None) -> StepResult:
        time.sleep(SECONDS)
        result = original(self, batch, step, following)
        rows = batch.candidates[batch.positions].numpy()
        parts = np.split(rows, batch.offsets[1:-1].numpy()) if len(batch.offsets) > 1 else []
        histories = [sorted(part.tolist()) for part in parts if len(part)]
        file.write(json.dumps({"ranks": ranks.size, "step": step, "histories": histories}) + "\n")
        return result

    Trainer.step = step  # type: ignore[method-assign]
    with (folder / f"{name[0]}-{ranks.rank}.jsonl").open("w", buffering=1) as file:
        return train_worker(ranks, arguments)


def recorded(run: Path) -> list[Recorded]:
    """The worker groups of a run in the order in which they came, as far as they trained."""
    groups: dict[str, Recorded] = {}
    for path in sorted((run / FOLDER).glob("*.jsonl")):
        name = path.stem.rpartition("-")[0]
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break  # the worker was killed within a line
            group = groups.setdefault(name, Recorded(line["ranks"], {}))
            group.steps.setdefault(line["step"], []).extend(map(tuple, line["histories"]))
    return list(groups.values())


if __name__ == "__main__":
    vars(driver)["train_worker"] = recording_worker
    sys.exit(main())
