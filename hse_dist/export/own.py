"""Scores of items of the history: without what an item gives itself.

In: users' vectors and histories as CSR, the export's rows and gains. Out: for an item j of a history
g_j · (u · A_j − ‖A_j‖²), the model's formula, and the best of these and of the items that are new to the user.

Where `user_entries` leaves entries of u out, ‖A_j‖² stays whole, as in training and evaluation. Sums are taken in
float64: u · A_j is often little more than ‖A_j‖².
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from hse_dist.export.choice import Choice

Found = tuple[np.ndarray, np.ndarray]


def owners(matrix: sp.csr_matrix) -> np.ndarray:
    """The row of each entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def look_up(users: sp.csr_matrix, owner: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The users' entries at (owner, column), float64; 0 where there is none. Columns of `users` rise."""
    dims = np.int64(users.shape[1])
    keys = np.append(owners(users) * dims + users.indices, np.iinfo(np.int64).max)
    asked = owner * dims + columns
    place = np.searchsorted(keys, asked)
    return np.where(keys[place] == asked, np.append(users.data, 0.0)[place], 0.0)


def own_scores(matrix: sp.csr_matrix, gains: np.ndarray, users: sp.csr_matrix, histories: sp.csr_matrix) -> np.ndarray:
    """Scores of the histories' items, float32, in the order of `histories.indices`."""
    rows = matrix[histories.indices]
    entry = owners(rows)
    values = rows.data.astype(np.float64)
    given = (look_up(users, owners(histories)[entry], rows.indices) - values) * values
    return (np.bincount(entry, given, minlength=len(histories.indices)) * gains[histories.indices]).astype(np.float32)


def with_own(found: Found, scores: np.ndarray, histories: sp.csr_matrix, choice: Choice) -> Found:
    """The best of what was found, [B, k], and of the histories' items that are a choice, with their scores."""
    top, best = found
    users, k = top.shape
    some, mine = top >= 0, choice.allows(histories.indices)
    owner = np.concatenate([np.nonzero(some)[0], owners(histories)[mine]])
    rows = np.concatenate([top[some], histories.indices[mine]]).astype(np.int64)
    # adding 0 makes −0 equal to +0
    scored = np.concatenate([best[some], scores[mine]]) + np.float32(0)
    order = np.lexsort((rows, -scored, owner))
    place = np.arange(len(order)) - np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=users))])[owner[order]]
    order, place = order[place < k], place[place < k]
    top, best = np.full((users, k), -1, np.int64), np.full((users, k), -np.inf, np.float32)
    top[owner[order], place], best[owner[order], place] = rows[order], scored[order]
    return top, best
