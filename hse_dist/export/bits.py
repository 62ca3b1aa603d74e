"""Numbers of b bits, packed without gaps.

In: whole numbers below 2^b. Out: bytes, and back. Eight numbers fill b bytes exactly, so all groups of eight look the
same, and number k of a group begins at bit k · b: eight passes over all groups instead of one over the numbers.

The lowest bit comes first. b is at most 32.
"""

from __future__ import annotations

import numpy as np

GROUP = 8
"""Numbers that fill whole bytes."""


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned numbers [8 · g] as uint8 [g · bits]."""
    lanes = numbers.reshape(-1, GROUP)
    packed = np.zeros((len(lanes), bits), np.uint8)
    for lane in range(GROUP):
        byte, shift = divmod(lane * bits, 8)
        word = lanes[:, lane].astype(np.uint64) << np.uint64(shift)
        for place in range(byte, byte + _bytes(shift, bits)):
            packed[:, place] |= word.astype(np.uint8)  # the lowest eight bits
            word >>= np.uint64(8)
    return packed.reshape(-1)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [g · bits] as int64 [8 · g]."""
    groups = packed.reshape(-1, bits)
    numbers = np.empty((len(groups), GROUP), np.int64)
    for lane in range(GROUP):
        byte, shift = divmod(lane * bits, 8)
        word = groups[:, byte].astype(np.int64)
        for place in range(1, _bytes(shift, bits)):
            word |= groups[:, byte + place].astype(np.int64) << np.int64(8 * place)
        numbers[:, lane] = (word >> shift) & (2**bits - 1)
    return numbers.reshape(-1)


def _bytes(shift: int, bits: int) -> int:
    """Bytes that a number has a part in."""
    return -(-(shift + bits) // 8)
