"""Small runs for tests: a made-up log, prepared once, and configurations that train on it in seconds.

In: a folder. Out: a `Config`, and what a run left behind, in a form that can be compared.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hse_dist.checkpoint.finding import Checkpoint
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import Config, parse_config
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.start import open_start
from hse_dist.sparsity.tables import make_table

TIMINGS = ("steps_per_second", "users_per_second", "eta_seconds", "wait_share", "memory_bytes")

SMALL: dict[str, Any] = {
    "data": {
        "source": "synthetic",
        "synthetic": {"users": 400, "items": 150, "mean_history": 14},
        "users_per_row_group": 32,
        "min_user_count": 3,
    },
    "tables": {"item": {"dims": 48, "live": 6, "chunk_width": 8}},
    "model": {"row_norm": "unit"},
    "sparsity": {
        "start": "random",
        "budget": {"ceiling": 16},
        "schedule": {"interval": 6},
        "grow": {"window": 3, "explore": 4},
    },
    "train": {
        "epochs": 3,
        "batch_size": 32,
        "negatives": 40,
        "learning_rate": 0.3,
        "warm_accumulator": 0.1,
        "log_every": 4,
    },
    "cluster": {"workers": 0},
}


def small_config(folder: Path, data: Path, **changes: Any) -> Config:
    """A run in `folder` on the prepared `data`; changes as those of `changed`."""
    raw = copy.deepcopy(SMALL)
    raw["run"] = {"folder": str(folder)}
    raw["data"]["folder"] = str(data)
    return changed(raw, **changes)


def changed(raw: dict[str, Any], **changes: Any) -> Config:
    """The configuration of a nested dictionary, which is changed; changes are dotted paths with "__" for a dot."""
    for path, value in changes.items():
        *sections, name = path.split("__")
        table = raw
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return parse_config(raw, "of a test")


def as_toml(config: Config) -> str:
    """The configuration as the text of a file."""
    return "\n".join(_toml_lines(config.model_dump(mode="json", exclude_none=True), ""))


def _toml_lines(table: dict[str, Any], path: str) -> Iterator[str]:
    if path:
        yield f"[{path}]"
    sections = {name: value for name, value in table.items() if isinstance(value, dict)}
    for name, value in table.items():
        if name not in sections:
            yield f"{name} = {json.dumps(value)}"
    for name, section in sections.items():
        yield from _toml_lines(section, f"{path}.{name}".lstrip("."))


def store_of(config: Config) -> CheckpointStore:
    """The checkpoints of a run."""
    return CheckpointStore.of(config)


def read_checkpoint(ranks: Ranks, config: Config, checkpoint: Checkpoint, rows: int) -> dict[str, np.ndarray]:
    """Weights and optimizer state of this rank's shards by name; a collective call."""
    start = open_start(config, RunFolder(config).start) if config.tables.item.kind == "packed" else None
    store = store_of(config)
    state = make_table(config, rows, start, ranks, store.load_shared(checkpoint)).state_dict()
    store.load(checkpoint, state)
    tensors = {**state["model"]}
    for name, parts in state.get("optimizer", {}).items():
        tensors.update({f"{name}:{key}": tensor for key, tensor in parts.items()})
    return {name: shard.tensor.numpy() for name, tensor in tensors.items() for shard in tensor.local_shards()}


def metrics_of(config: Config) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without what depends on the clock."""
    lines = (json.loads(line) for line in RunFolder(config).metrics.read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def journal_of(config: Config) -> list[dict[str, Any]]:
    """The lines of `topology.jsonl` without what depends on the clock."""
    lines = (json.loads(line) for line in RunFolder(config).journal.read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
