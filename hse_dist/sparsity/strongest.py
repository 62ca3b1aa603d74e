"""The strongest few of each row, without a loop over rows.

In: keys by place (slots of rows, or positions that could grow), 0 where there is none. Out: the same keys, of which all
but the chosen are 0. Ties go to the lower column, so that the result does not depend on the places. A compiled pass
looks at each row by itself; the plain path sorts blocks of rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from hse_dist.native.library import call, library
from hse_dist.sparsity.budget import ranks_in_row, row_blocks
from hse_dist.sparsity.selection import Keys

Ints = npt.NDArray[np.int64]
Columns = npt.NDArray[np.int32]


def keep_strongest(
    offsets: Ints, keys: Keys, columns: Columns, limits: Ints, *, largest: bool, others: bool = False
) -> None:
    """Set all keys to 0 but those of the `limits[row]` largest (smallest) of each row; in place.

    Args:
        offsets: int64 [rows + 1], the places of each row.
        keys: uint32 [places], 0 for none. columns: int32 [places]. limits: int64 [rows].
        others: set the keys of just these to 0 instead.
    """
    if library() is not None:
        rows, threads = len(offsets) - 1, torch.get_num_threads()
        call("hse_keep_strongest", rows, threads, offsets, keys, columns, limits, int(largest), int(others))
        return
    for first, last in row_blocks(offsets):
        here = offsets[first] + np.flatnonzero(keys[offsets[first] : offsets[last]])
        rows_here = np.searchsorted(offsets, here, side="right") - 1
        order = np.lexsort((columns[here], rows_here))
        here, rows_here = here[order], rows_here[order]
        chosen = ranks_in_row(rows_here, keys[here], largest=largest) < limits[rows_here]
        keys[here[chosen if others else ~chosen]] = 0
