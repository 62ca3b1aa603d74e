"""What users have beside a history, on its way into their vectors.

In: an export's features of users; raw values by feature. Out: rows, and users' vectors with these rows added. A value
that a user has twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.errors import ConfigError
from hse_dist.export.features import LONGEST_NAME, UserFeatures
from hse_dist.export.ids import Ids, as_array

Features = Mapping[str, Any]
"""A user's values by feature: one, or several as a list, tuple, set or array; None: not known."""


@dataclass(frozen=True)
class Context:
    """The features of B users.

    Attributes:
        offsets, rows: int64 [B + 1], [M]; user b has the rows rows[offsets[b]:offsets[b + 1]] of the features' matrix.
    """

    offsets: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, users: int, owners: list[np.ndarray], rows: list[np.ndarray]) -> Self:
        """Rows and the user of each, in any order, some perhaps twice."""
        none = np.zeros(0, np.int64)
        pairs = np.unique(np.stack([np.concatenate([none, *owners]), np.concatenate([none, *rows])]), axis=1)
        return cls(np.concatenate([[0], np.cumsum(np.bincount(pairs[0], minlength=users))]), pairs[1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def between(self, first: int, last: int) -> Context:
        """Of the users first … last − 1."""
        ends = self.offsets[first : last + 1]
        return Context(ends - ends[0], self.rows[ends[0] : ends[-1]])


class Contexts:
    """Args:
    features: those of an export; None: it has none.
    """

    def __init__(self, features: UserFeatures | None) -> None:
        self.names = features.names if features else ()
        values = features.values if features else ()
        self._first = np.cumsum([0, *map(len, values)])
        self._types = [part.type for part in values]
        self._ids = [Ids(part) for part in values]
        self._matrix = features.matrix if features else sp.csr_matrix((0, 1), dtype=np.float32)

    def prepare(self) -> None:
        """Put the values in order now."""
        for ids in self._ids:
            ids.prepare()

    def of(self, users: Iterable[Features | None]) -> tuple[Context, list[dict[str, list[Any]]]]:
        """The rows of users' values, and of each user those that the export does not know, by feature.

        Args:
            users: None for one of whom nothing is known.

        Raises:
            ConfigError: there is no feature of such a name, or a user is no mapping.
        """
        asked = [{} if user is None else user for user in users]
        unknown: list[dict[str, list[Any]]] = [{} for _ in asked]
        if not all(isinstance(user, Mapping) for user in asked):
            raise ConfigError("What is known of a user is a mapping of features to values.")
        if not any(asked):
            return Context(np.zeros(len(asked) + 1, np.int64), np.zeros(0, np.int64)), unknown
        self._check({name: None for user in asked for name in user})
        owners, found = [], []
        for name in self.names:
            lists = [_values(user.get(name)) for user in asked]
            values = [value for given in lists for value in given]
            owner = np.repeat(np.arange(len(asked)), [len(given) for given in lists])
            rows = self._rows(name, _array(values, self.type_of(name)))
            for index in np.flatnonzero(rows < 0).tolist():
                unknown[owner[index]].setdefault(name, []).append(values[index])
            owners.append(owner[rows >= 0])
            found.append(rows[rows >= 0])
        return Context.of(len(asked), owners, found), unknown

    def of_values(self, users: int, columns: Mapping[str, tuple[np.ndarray, pa.Array]]) -> tuple[Context, int]:
        """The rows of users' values, and how many of these the export does not know.

        Args:
            columns: of features, by name: the user of each value, int64, and the values in the type of `type_of`.
        """
        owners, found, unknown = [], [], 0
        for name, (owner, values) in columns.items():
            rows = self._rows(name, values)
            owners.append(owner[rows >= 0])
            found.append(rows[rows >= 0])
            unknown += int((rows < 0).sum())
        return Context.of(users, owners, found), unknown

    def type_of(self, name: str) -> pa.DataType:
        """Of a feature's raw values."""
        return self._types[self.names.index(name)]

    def _rows(self, name: str, values: pa.Array) -> np.ndarray:
        """Of the features' matrix; −1 where there is none."""
        place = self.names.index(name)
        rows = self._ids[place].rows_of(values)
        return np.where(rows >= 0, rows + self._first[place], -1)

    def _check(self, names: Iterable[Any]) -> None:
        strange = [str(name)[:LONGEST_NAME] for name in names if name not in self.names]
        if strange:
            known = ", ".join(self.names)
            cause = f"There are {known}." if known else "It has none: its model knows nothing of users but histories."
            raise ConfigError(f"The export has no feature {strange[0]!r} of users.", cause=cause)

    def added(self, users: sp.csr_matrix, context: Context) -> sp.csr_matrix:
        """Users' vectors, float32 [B, D] with rising columns, with the rows of their values added."""
        if not len(context.rows):
            return users
        ones = np.ones(len(context.rows), np.float32)
        has = sp.csr_matrix((ones, context.rows, context.offsets), shape=(len(context), self._matrix.shape[0]))
        more = has @ self._matrix
        more.sort_indices()
        total = users + more
        total.sort_indices()
        return total


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Raw values in the export's type, in which truth values are the texts true and false."""
    if not pa.types.is_integer(kind):
        values = [str(one).lower() if isinstance(one, bool | np.bool_) else one for one in values]
    return as_array(values, kind)


def _values(given: Any) -> list[Any]:
    if given is None:
        return []
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    if isinstance(given, np.ndarray) and not given.ndim:
        return [given.item()]
    return list(given) if several else [given]
