"""Thirds of a catalogue by popularity: what is said of the head, the middle and the tail of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

THIRDS = ("head", "middle", "tail")


def thirds(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The third of each item: 0 head, 1 middle, 2 tail.

    The head is the items from the most popular down until they hold a third of all training interactions; the middle
    goes on until two thirds; the tail is the rest.

    Args:
        counts: int64 `[items]`, training interactions; of equal ones the lower row is the more popular.
    """
    order = np.argsort(-counts, kind="stable")  # rows that were added later do not stand by falling count
    falling = counts[order]
    before = np.cumsum(falling) - falling
    found = np.empty(len(counts), np.uint8)
    found[order] = np.minimum(3 * before // max(int(counts.sum()), 1), 2)
    return found
