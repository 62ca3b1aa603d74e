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
    matrix: sp.csr_matrix,
    gains: np.ndarray,
    user: sp.csr_matrix,
    history: np.ndarray,
    top: np.ndarray,
    ids: pa.Array,
    most: int | None = None,
) -> list[list[Reason]]:
    """For each row of `top` its reasons, with raw ids; the arguments are those of `shares`.

    Args:
        most: items that a reason names, those that add most; None: all. With it a reason costs the same whatever the
            length of the history.
    """
    found = shares(matrix, gains, user, history, top)
    given = matrix[history]
    values, givers = given.data, owners(given)
    # within a column those first that add most: the largest values, or the smallest if the weight is negative
    orders = [np.lexsort((givers, sign * values, given.indices)) for sign in (1, -1)]
    columns = given.indices[orders[0]]  # the same in both
    names = ids.take(pa.array(history)).to_pylist()
    first, last = (np.searchsorted(columns, found.column, side) for side in ("left", "right"))
    if most is not None:
        last = np.minimum(last, first + most + 1)  # one of them may be the item itself
    answer: list[list[Reason]] = [[] for _ in top]
    for e, place in enumerate(found.place.tolist()):
        adding = givers[orders[int(found.weight[e] > 0)][first[e] : last[e]]].tolist()
        items = [names[one] for one in adding if history[one] != top[place]][:most]
        answer[place].append(Reason(int(found.column[e]), float(found.part[e]), items))
    return answer
