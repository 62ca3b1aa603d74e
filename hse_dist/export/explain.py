"""Which shared columns made a score.

In: one user's vector, the history and the items that were recommended, as rows. Out: the columns of each item that hold
a part of its score, with that part and the items of the history that gave it. A score is g_j · Σ_c u_c · A_jc, so the
parts are what they say, and not an approximation; the cost is that of the few rows in question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.export.own import look_up, owners
from hse_dist.export.recommendation import Reason


@dataclass(frozen=True)
class Shares:
    """The parts of the scores of n items: of entry e, the item's place in the answer, the column, the part, and what
    the history's sum in that column is multiplied by."""

    place: np.ndarray
    column: np.ndarray
    part: np.ndarray
    weight: np.ndarray


def shares(
    matrix: sp.csr_matrix, gains: np.ndarray, user: sp.csr_matrix, history: np.ndarray, top: np.ndarray
) -> Shares:
    """The parts that are not 0, by item and, within one, the largest in size first.

    Args:
        user: [1, D]. history: distinct rows, which get nothing from themselves. top: rows.
    """
    rows = matrix[top]
    place = owners(rows)
    values = rows.data.astype(np.float64)
    weights = gains[top][place] * values
    own = np.where(np.isin(top, history)[place], values, 0.0)
    parts = (look_up(user, np.zeros(len(place), np.int64), rows.indices) - own) * weights
    order = np.lexsort((rows.indices, -np.abs(parts), place))
    order = order[parts[order] != 0]
    return Shares(place[order], rows.indices[order], parts[order], weights[order])


def reasons(
    matrix: sp.csr_matrix, gains: np.ndarray, user: sp.csr_matrix, history: np.ndarray, top: np.ndarray, ids: pa.Array
) -> list[list[Reason]]:
    """For each row of `top` its reasons, with raw ids; the arguments are those of `shares`."""
    found = shares(matrix, gains, user, history, top)
    given = matrix[history]
    by_column = np.argsort(given.indices, kind="stable")
    columns, values, givers = given.indices[by_column], given.data[by_column], owners(given)[by_column]
    names = ids.take(pa.array(history)).to_pylist()
    first, last = (np.searchsorted(columns, found.column, side) for side in ("left", "right"))
    answer: list[list[Reason]] = [[] for _ in top]
    for e, place in enumerate(found.place.tolist()):
        here = slice(first[e], last[e])
        order = np.argsort(-values[here] * found.weight[e], kind="stable")
        items = [names[one] for one in givers[here][order].tolist() if history[one] != top[place]]
        answer[place].append(Reason(int(found.column[e]), float(found.part[e]), items))
    return answer
