"""A seeded hash of ids that is the same on every machine, for whole columns at once.

In: a column of integer or string ids and a seed. Out: one uint64 an id. Buckets, splits and random targets are decided
by it, so that they depend on the id alone: neither on the file an interaction was found in nor on the number of tasks.

Integers go through the finalizer of splitmix64 (Steele et al., OOPSLA 2014); strings are folded eight bytes at a time
over the Arrow buffers with the same mix. Neither makes a Python object an id.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

U64 = np.uint64
BUCKET_SEED = 0x6275636B6574
"""Seed of the hash that spreads users over buckets: fixed, since buckets must not follow the split."""
SPLIT_SALT = 0x73706C6974
"""Added to the split seed, so that the hash that splits users is never the one that spreads them."""
TARGET_SALT = 0x746172676574
"""Added to the split seed for the hash of (user, item) that picks random targets."""


def mix(words: np.ndarray) -> np.ndarray:
    """splitmix64 of uint64 words: a bijection whose output bits are all well mixed. Returns a new array."""
    mixed = words + U64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> U64(30)
    mixed *= U64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> U64(27)
    mixed *= U64(0x94D049BB133111EB)
    mixed ^= mixed >> U64(31)
    return mixed


def seed_word(seed: int) -> np.ndarray:
    """The seed as one mixed word, uint64 [1]; seeds beyond 64 bits are folded."""
    return mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], U64))


def hash_ids(ids: pa.Array, seed: int) -> np.ndarray:
    """Hashes of ids without nulls.

    Args:
        ids: int64, string or large_string [n].
        seed: another seed gives an independent hash.

    Returns:
        uint64 [n].
    """
    if pa.types.is_integer(ids.type):
        return mix(ids.to_numpy(zero_copy_only=False).astype(np.int64, copy=False).view(U64) ^ seed_word(seed))
    return _hash_strings(ids.cast(pa.large_string()), seed)


def _hash_strings(ids: pa.Array, seed: int) -> np.ndarray:
    _, offsets_buffer, bytes_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64, len(ids) + 1, ids.offset * 8)
    start, lengths = offsets[:-1], np.diff(offsets)
    # the extra word lets the last id's word be read beyond its end; the mask below removes what does not belong to it
    text = np.zeros(int(offsets[-1]) + 8, np.uint8)
    text[: int(offsets[-1])] = np.frombuffer(bytes_buffer, np.uint8, int(offsets[-1])) if offsets[-1] else 0
    words = np.ndarray((len(text) - 7,), "<u8", text, strides=(1,))
    hashes = mix(lengths.astype(U64) ^ seed_word(seed))
    alive = np.flatnonzero(lengths > 0)
    position = 0
    while len(alive):
        word = words[start[alive] + position].astype(U64)
        spare = np.maximum(8 - (lengths[alive] - position), 0).astype(U64) * U64(8)
        word &= U64(0xFFFFFFFFFFFFFFFF) >> spare
        hashes[alive] = mix(hashes[alive] ^ word)
        position += 8
        alive = alive[lengths[alive] > position]
    return hashes


def bucket_of(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """Bucket of each hash, int64 [n]: equal ranges of the hash in rising order.

    Ranges, not remainders: `buckets × k` ranges refine `buckets` ranges, so that a bucket may be worked on in k parts
    that follow one another in hash order, and how many parts there were cannot be seen in the result.
    """
    return (((hashes >> U64(32)) * U64(buckets)) >> U64(32)).astype(np.int64)


def fraction_of(hashes: np.ndarray) -> np.ndarray:
    """Each hash as a number in [0, 1), float64 [n], from its upper 53 bits."""
    return (hashes >> U64(11)).astype(np.float64) * 2.0**-53
