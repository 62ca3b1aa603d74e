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


def random_entries(lengths: Ints, first: int, *, dims: int, seed: int) -> Triples:
    """The entries of the rows first … first + len(lengths) - 1, by row, then column; every row has length 1."""
    local = np.repeat(np.arange(len(lengths)), lengths)
    index = np.arange(len(local)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    row_keys = mix((np.arange(len(lengths)) + first).astype(np.uint64) ^ seed_word(seed))
    columns = _permuted(index.astype(np.uint64), mix(row_keys ^ COLUMN_SALT)[local], dims).astype(np.int64)
    uniform = fraction_of(mix(mix(row_keys ^ VALUE_SALT)[local] + index.astype(np.uint64)))
    # 0 has no quantile. ndtri goes number by number; numpy's log and cos may round by a number's place in the array
    values = ndtri(np.maximum(uniform, 2.0**-54))
    norms = np.sqrt(np.bincount(local, values**2, minlength=len(lengths)))
    order = np.argsort(local * dims + columns)
    scaled = (values / norms[local]).astype(np.float32)
    return Triples((local + first)[order], columns[order], scaled[order])


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
