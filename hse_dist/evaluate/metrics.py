"""How good top lists are: nDCG, recall and coverage, over all items and by thirds of interactions.

In: blocks of top lists and targets (CSR), and the third that each item belongs to. Out: values of each user, kept for
paired comparisons, and one dictionary of means.

Definitions, for a user with targets T and the list l of 100 items the user has not seen:

* nDCG@100 = Σ_{r: l_r in T} 1 / log2(r + 2), divided by the same sum over the first min(100, |T|) ranks (r from 0).
* Recall@k = |T ∩ first k of l| / min(k, |T|).
* Coverage = share of the items that are in anyone's list.
* By thirds (`data/popularity.py`): head, middle and tail of the catalogue. The list stays that of the whole catalogue;
  only targets of the third count, in the sums, the ideal and |T|; users without such a target are left out. Coverage is
  that of the third.

Everything is kept a user (96 bytes), not as running sums: means are taken in the order of the users, so they are
bit-equal whatever the number of ranks and the size of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.data.popularity import THIRDS
from hse_dist.errors import DataError
from hse_dist.files import new_file, refuse_devices

DEPTH = 100
"""Length of the top lists."""
METRICS = ("ndcg@100", "recall@20", "recall@50")

_CUTS = (20, 50)
_DISCOUNT = 1.0 / np.log2(np.arange(DEPTH) + 2.0)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def user_values(top: Ints, target_offsets: Ints, target_rows: Ints, third: npt.NDArray[np.uint8]) -> Floats:
    """Metrics of each user, `[groups, metrics, B]`: groups are all, head, middle, tail; NaN without a target in it.

    Args:
        top: int64 `[B, 100]`, distinct item rows, best first, -1 for none.
        target_offsets, target_rows: int64 `[B + 1]`, `[L]`; a user's targets are distinct.
        third: uint8 `[items]`.
    """
    users = len(top)
    owner = np.repeat(np.arange(users), np.diff(target_offsets))
    hit = _hits(top, owner, target_rows, len(third))
    hits = np.stack([hit, *(hit & (third[top] == t) for t in range(3))])
    owners = [owner, *(owner[third[target_rows] == t] for t in range(3))]
    targets = np.stack([np.bincount(o, minlength=users) for o in owners])
    ideal = np.concatenate([[0.0], np.cumsum(_DISCOUNT)])
    values = np.full((4, len(METRICS), users), np.nan)
    some = targets > 0
    np.divide((hits * _DISCOUNT).sum(-1), ideal[np.minimum(targets, DEPTH)], out=values[:, 0], where=some)
    for m, k in enumerate(_CUTS, start=1):
        np.divide(hits[:, :, :k].sum(-1), np.minimum(targets, k), out=values[:, m], where=some)
    return values


def _hits(top: Ints, owner: Ints, target_rows: Ints, items: int) -> npt.NDArray[np.bool_]:
    """Which places of the lists hold a target, bool `[B, 100]`."""
    if not len(target_rows):
        return np.zeros(top.shape, bool)
    targets = np.sort(owner * items + target_rows)
    places = np.arange(len(top))[:, None] * items + top
    found = targets[np.minimum(np.searchsorted(targets, places), len(targets) - 1)] == places
    return found & (top >= 0)


class Metrics:
    """Gathers top lists; those of several ranks merge. Picklable.

    Args:
        third: uint8 `[items]` as given by `data.popularity.thirds`.
    """

    def __init__(self, third: npt.NDArray[np.uint8]) -> None:
        self.third = third
        self.covered = np.zeros(len(third), bool)
        self._order: list[Ints] = []
        self._values: list[Floats] = []

    def add(self, top: Ints, target_offsets: Ints, target_rows: Ints, users: Ints) -> None:
        """Take in a block of lists.

        Args:
            top: int64 `[B, 100]`, -1 for none; B may be 0.
            target_offsets, target_rows: the targets, CSR; every user has one.
            users: int64 `[B]`, each user's position in the split.

        Raises:
            DataError: a user has no target.
        """
        if top.shape != (len(users), DEPTH) or len(target_offsets) != len(users) + 1:
            raise ValueError(f"top lists {top.shape} and {len(target_offsets) - 1} targets of {len(users)} users")
        if not np.all(np.diff(target_offsets) > 0):
            position = int(users[np.argmin(np.diff(target_offsets))])
            raise DataError(f"The held-out user at position {position} has no target.", cause="Prepare the data again.")
        self.covered[top[top >= 0]] = True
        self._order.append(np.asarray(users, np.int64))
        self._values.append(user_values(top, target_offsets, target_rows, self.third))

    def merge(self, other: Metrics) -> None:
        """Take in what another rank has gathered for the same items."""
        if not np.array_equal(self.third, other.third):
            raise ValueError("metrics of different items do not merge")
        self.covered |= other.covered
        self._order += other._order
        self._values += other._values

    def per_user(self) -> dict[str, np.ndarray]:
        """`user` (int64 position in the split, ascending) and each metric (float64), all `[users]`."""
        order, values = self._sorted()
        return {"user": order, **{name: values[0, m] for m, name in enumerate(METRICS)}}

    def result(self) -> dict[str, Any]:
        """`ndcg@100`, `recall@20`, `recall@50`, `coverage`, `users`, and the same with `items` by `thirds`.

        A mean over no user and a coverage of no item is None.

        Raises:
            DataError: there was no user at all.
        """
        _, values = self._sorted()
        if values.shape[2] == 0:
            raise DataError("There are no held-out users to evaluate.", cause="Check data.split.")
        by_third = {name: self._group(values[1 + t], self.third == t) for t, name in enumerate(THIRDS)}
        return {**self._group(values[0], np.ones(len(self.third), bool)), "thirds": by_third}

    def _group(self, values: Floats, items: npt.NDArray[np.bool_]) -> dict[str, Any]:
        some = ~np.isnan(values[0])
        means = {name: float(values[m, some].mean()) if some.any() else None for m, name in enumerate(METRICS)}
        coverage = float(self.covered[items].mean()) if items.any() else None
        return {**means, "coverage": coverage, "users": int(some.sum()), "items": int(items.sum())}

    def _sorted(self) -> tuple[Ints, Floats]:
        order = np.concatenate([np.empty(0, np.int64), *self._order])
        places = np.argsort(order, kind="stable")
        order = order[places]
        if np.any(order[1:] == order[:-1]):
            raise ValueError("a user was added twice")
        return order, np.concatenate([np.empty((4, len(METRICS), 0)), *self._values], axis=2)[:, :, places]


def write_users(path: str | Path, values: Mapping[str, np.ndarray], ids: pa.Array | None = None) -> None:
    """Write `Metrics.per_user()` as Parquet (user, ndcg@100, recall@20, recall@50), whole or not at all.

    Args:
        ids: the ids of the split's users in file order; without them a user is written as its position.
    """
    users = pa.array(values["user"]) if ids is None else ids.take(pa.array(values["user"]))
    table = pa.table({"user": users, **{name: pa.array(values[name]) for name in METRICS}})
    with new_file(path) as temporary:
        pq.write_table(table, temporary)


def read_users(path: str | Path) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """Users (in file order) and the metrics `[users]` that `write_users` wrote.

    Raises:
        DataError: the file is missing or is not of that kind.
    """
    try:
        refuse_devices(path)
        table = pq.read_table(path, columns=["user", *METRICS], partitioning=None)
    except FileNotFoundError:
        raise DataError(f"There is no file of users' metrics at {path}.") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"The users' metrics at {path} cannot be read: {error}.") from None
    if missing := {name for name in ("user", *METRICS) if table.column_names.count(name) != 1}:
        raise DataError(f"The users' metrics at {path} lack {', '.join(sorted(missing))}, or have it twice.")
    if wrong := [name for name in METRICS if table.schema.field(name).type != pa.float64() or table[name].null_count]:
        raise DataError(f"The users' metrics at {path} hold what is no number of type double in {', '.join(wrong)}.")
    values = {name: table[name].to_numpy() for name in METRICS}
    if not all(np.isfinite(part).all() for part in values.values()):
        raise DataError(f"The users' metrics at {path} hold numbers that are not finite.")
    return table["user"].combine_chunks(), values
