"""The run that a soak disturbs: made-up data, two workers, short limits, a checkpoint every few seconds.

In: a folder. Out: a TOML file there; data and runs lie beside it.
"""

from __future__ import annotations

from pathlib import Path

from hse_dist.files import new_file

SETTINGS = """\
[run]
folder = "{folder}/clean"
[data]
source = "synthetic"
folder = "{folder}/data"
users_per_row_group = 32
min_user_count = 3
[data.synthetic]
users = 4000
items = 600
mean_history = 14
[tables.item]
dims = 256
live = 12
chunk_width = 8
[model]
row_norm = "unit"
[sparsity]
start = "random"
budget.ceiling = 32
schedule.interval = 10
grow.window = 3
[train]
epochs = 28
batch_size = 32
negatives = 200
learning_rate = 0.3
warm_accumulator = 0.1
log_every = 5
checkpoint_every = 20
evaluate_every = 4
[cluster]
workers = 2
timeout_seconds = 12
warn_seconds = 3
grace_seconds = 30
max_failures = 1000
"""


def write_settings(folder: Path) -> Path:
    """The file of settings in `folder`, which is made."""
    path = folder.absolute() / "soak.toml"
    with new_file(path) as temporary:
        temporary.write_text(SETTINGS.format(folder=folder.absolute()), encoding="utf-8")
    return path
