"""A made-up log whose users and items have features, one of them useful and one of no use.

In: a folder. Out: the settings of its data. Users belong to groups and take items of them; histories are short,
so that the group says more than they do. The feature `noise` of users means nothing, and so does what it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUPS, ITEMS_A_GROUP, NOISES = 6, 12, 6


def write_log(folder: Path, users: int = 400, history: int = 4, seed: int = 0) -> dict[str, Any]:
    """Write a log, a table of users and one of items; the section `data` of a configuration that reads them."""
    rng, items = np.random.default_rng(seed), GROUPS * ITEMS_A_GROUP
    group = rng.integers(0, GROUPS, users)
    own = group[:, None] * ITEMS_A_GROUP + np.argsort(rng.random((users, ITEMS_A_GROUP)), axis=1)[:, :history]
    taken = np.where(rng.random(own.shape) < 0.85, own, rng.integers(0, items, own.shape))
    folder.mkdir(parents=True, exist_ok=True)
    log = {"user_id": np.repeat(np.arange(users), history), "item_id": taken.ravel()}
    of_users = {"user_id": np.arange(users), "team": group, "noise": rng.integers(0, NOISES, users)}
    shelves = [[f"s{item // ITEMS_A_GROUP}"] if item % 3 else [] for item in range(items)]
    of_items = {"item_id": np.arange(items), "shelf": pa.array(shelves, pa.list_(pa.string()))}
    for name, columns in (("log", log), ("users", of_users), ("items", of_items)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    users_at, items_at = (str(folder / f"{name}.parquet") for name in ("users", "items"))
    return {
        "source": str(folder / "log.parquet"),
        "folder": str(folder / "prepared"),
        "users_per_row_group": 32,
        "split": {"kind": "within_users", "valid": 0.2, "test": 0.2, "target": 0.3},
        "features": {
            "team": {"of": "user", "column": "team", "source": users_at},
            "noise": {"of": "user", "column": "noise", "source": users_at},
            "self": {"of": "user"},
            "shelf": {"of": "item", "column": "shelf", "source": items_at},
        },
    }
