"""The random start: every row gets its number of distinct random columns with normal values and length 1.

In: row lengths, the number of columns and a seed. Out: the entries of any range of rows.

Column t of a row is the image of t under a permutation of all columns that is keyed by (seed, row): distinct by
construction, at any number of columns, without a draw that depends on another. So a row depends on (seed, row, length)
alone, not on ranges or tasks.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from hse_dist.data.hashing import fraction_of, mix, seed_word
from hse_dist.sparsity.start.triples import Triples

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ROUNDS = 6
"""Rounds of the Feistel network; four make it pseudo-random, two more cost little."""
COLUMN_SALT = np.uint64(0x636F6C756D6E)
VALUE_SALT = np.uint64(0x76616C7565)


def random_entries(
    lengths: Ints, first: int, *, dims: int, seed: int, block: int = 1, group: tuple[int, int] | None = None
) -> Triples:
    """The entries of the rows first … first + len(lengths) - 1, by row, then column; every row has length 1.

    Args:
        block: adjacent columns of a block; then `lengths` and `dims` count blocks.
        group: (n, m): of every m columns a row has n entries at most, so that it can have `room` in all.
    """
    local = np.repeat(np.arange(len(lengths)), lengths)
    index = np.arange(len(local)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    row_keys = mix((np.arange(len(lengths)) + first).astype(np.uint64) ^ seed_word(seed))
    keys = mix(row_keys ^ COLUMN_SALT)[local]
    if group is None:
        columns = _permuted(index.astype(np.uint64), keys, dims).astype(np.int64)
    else:
        columns = _in_groups(index, keys, dims, *group)
    if block > 1:
        local, columns, index = (np.repeat(local, block), _entries(columns, block), _entries(index, block))
    uniform = fraction_of(mix(mix(row_keys ^ VALUE_SALT)[local] + index.astype(np.uint64)))
    # 0 has no quantile. ndtri goes number by number; numpy's log and cos may round by a number's place in the array
    values = ndtri(np.maximum(uniform, 2.0**-54))
    norms = np.sqrt(np.bincount(local, values**2, minlength=len(lengths)))
    order = np.argsort(local * dims * block + columns)
    scaled = (values / norms[local]).astype(np.float32)
    return Triples((local + first)[order], columns[order], scaled[order])


def room(dims: int, group: tuple[int, int] | None) -> int:
    """Entries that a row can have."""
    if group is None:
        return dims
    most, columns = group
    return dims // columns * most + min(dims % columns, most)


def _entries(numbers: Ints, block: int) -> Ints:
    """The entries of blocks, int64 [n · block]."""
    return (numbers[:, None] * block + np.arange(block)).ravel()


def _in_groups(index: Ints, keys: Words, dims: int, most: int, columns: int) -> Ints:
    """Columns of which every group has at most `most`: the places that groups have are dealt out, and then columns."""
    place = _permuted(index.astype(np.uint64), keys, room(dims, (most, columns))).astype(np.int64)
    group = place // most
    within, own = (place - group * most).astype(np.uint64), mix(keys ^ group.astype(np.uint64))
    whole = (group + 1) * columns <= dims
    found = np.empty(len(index), np.int64)
    for part, size in ((whole, columns), (~whole, dims % columns)):
        if part.any():
            found[part] = group[part] * columns + _permuted(within[part], own[part], size).astype(np.int64)
    return found


def _permuted(index: Words, keys: Words, dims: int) -> Words:
    """The image of each index < dims under the permutation of 0 … dims - 1 that its key names."""
    side = isqrt(dims - 1) + 1  # the network permutes side² numbers, hardly more than dims
    image = _feistel(index, keys, side)
    outside = np.flatnonzero(image >= dims)
    while len(outside):  # walk the cycle until it comes back inside: still a permutation
        image[outside] = _feistel(image[outside], keys[outside], side)
        outside = outside[image[outside] >= dims]
    return image


def _feistel(numbers: Words, keys: Words, side: int) -> Words:
    modulus = np.uint64(side)
    left, right = numbers // modulus, numbers % modulus
    for turn in range(ROUNDS):
        noise = mix(keys + right * np.uint64(ROUNDS) + np.uint64(turn))
        left, right = right, (left + (noise >> np.uint64(32))) % modulus
    return left * modulus + right
