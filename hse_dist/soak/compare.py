"""Whether two runs ended alike, bit by bit, but for timings.

In: two run folders. Out: what differs, in words: tables, optimizer state and what ranks keep to themselves in the
newest checkpoint, its facts, which checkpoint is the best one, the journal, the metrics.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from hse_dist.checkpoint.store import Checkpoint, CheckpointStore
from hse_dist.config import Config
from hse_dist.run_folder import RunFolder
from hse_dist.testing.runs import journal_of, metrics_of

CLOCK = ("rewire_costs",)
"""What a rank keeps of the time that passed."""


def differences(one: Config, other: Config) -> list[str]:
    """What is not equal; nothing, where nothing was lost."""
    found = [name for name, of in (("journal", journal_of), ("metrics", metrics_of)) if of(one) != of(other)]
    a, b = (CheckpointStore(RunFolder(config).checkpoints, config.checkpoint.keep) for config in (one, other))
    newest, best = (a.latest(), b.latest()), (a.best(), b.best())
    if newest[0] is None or newest[1] is None or best[0] is None or best[1] is None:
        return [*found, "checkpoints"]
    if newest[0].facts != newest[1].facts:
        found.append("facts")
    if best[0].step != best[1].step:
        found.append("best checkpoint")
    return found + _differing_tensors(newest[0], newest[1])


def _differing_tensors(one: Checkpoint, other: Checkpoint) -> list[str]:
    a, b = _tensors(one), _tensors(other)
    if a.keys() != b.keys():
        return [f"tensors: {sorted(a.keys() ^ b.keys())}"]
    return [name for name in sorted(a) if a[name] != b[name]]


def _tensors(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Everything in a checkpoint that is an array, by name, as bytes."""
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = Path(folder) / "whole.pt"
        dcp_to_torch_save(checkpoint.folder, whole)
        for name, tensor in _flat(torch.load(whole, weights_only=True)):
            found[name] = tensor.contiguous().numpy().tobytes()
    for file in sorted(checkpoint.folder.glob("*.npz")):
        with np.load(file) as arrays:
            found |= {f"{file.name}: {name}": arrays[name].tobytes() for name in arrays.files if name not in CLOCK}
    return found


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        return [(prefix, tree)]
    return [pair for name, part in tree.items() for pair in _flat(part, f"{prefix}/{name}")]
