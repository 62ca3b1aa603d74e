"""What a matrix of live entries takes in each way to store it, in bytes, and the smallest of them.

In: facts of a matrix: its shape, its live entries, and two counts that depend on where these are. Out: bytes, exact:
they are those of the files that `layouts.py` fills, without the files' headers.

The formulas are those of Hoefler et al., arXiv 2102.00554, §2.2, which count bits, with what files need in addition:
numbers take whole bytes, and a row can be found. What an entry costs beside its value: a column number (`csr`), or its
part of m · n bits (`bitmap`), or a few bits for the columns since the entry before (`delta`), or its part of a number
and of the values that are stored for nothing (`ell`, `block`).

Letters: m rows, n columns (D), L live entries, v bytes a value; u(x): bytes of the smallest unsigned type that holds
0 … x − 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Layout = Literal["csr", "ell", "bitmap", "delta", "block"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
"""Of equal size the first is taken: the one that is easier to read."""
WIDTHS = (4, 8, 16)
"""Columns of a block."""


def unsigned(count: int) -> int:
    """u(count): 1, 2, 4 or 8."""
    return next(size for size in (1, 2, 4, 8) if count <= 256**size)


def offset_bytes(count: int) -> int:
    """Of the offsets of `count` things."""
    return max(4, unsigned(count + 1))


def csr_bytes(rows: int, dims: int, live: int, value_bytes: int) -> int:
    """Compressed rows: (m + 1) offsets of 4 or 8 bytes, then L · (u(n) + v).

    The survey's L · ⌈log₂ n⌉ bits of columns and m · ⌈log₂ L⌉ of offsets.
    """
    return (rows + 1) * offset_bytes(live) + live * (unsigned(dims) + value_bytes)


def ell_bytes(rows: int, dims: int, longest: int, value_bytes: int) -> int:
    """Rows of one length, that of the longest: m · longest · (u(n + 1) + v).

    The number n stands for no column, so the numbers are one more than there are columns.
    """
    return rows * longest * (unsigned(dims + 1) + value_bytes)


def bitmap_bytes(rows: int, dims: int, live: int, value_bytes: int) -> int:
    """A bit for every position, m · ⌈n / 8⌉ bytes, then L · v. The survey's m · n bits, a row in whole bytes."""
    return rows * -(-dims // 8) + live * value_bytes


def delta_bytes(rows: int, live: int, longest: int, codes: int, bits: int, value_bytes: int) -> int:
    """Steps from entry to entry, b bits each: m · u(longest + 1) + ⌈codes / 8⌉ · b + L · v.

    The survey's run lengths of fixed width, with padding: a step that does not fit begins with codes that stand for no
    entry (each for 2^b − 1 columns), so there are more codes than live entries; `count_codes` counts them. Padding has
    no values here. Eight codes fill b bytes.
    """
    return rows * unsigned(longest + 1) + -(-codes // 8) * bits + live * value_bytes


def block_bytes(rows: int, dims: int, blocks: int, width: int, value_bytes: int) -> int:
    """Blocks of w adjacent columns: (m + 1) offsets of 4 or 8 bytes, then blocks · (u(⌈n / w⌉) + w · v).

    A block has one number and w values, those that are not live among them; `count_blocks` counts the blocks.
    """
    return (rows + 1) * offset_bytes(blocks) + blocks * (unsigned(-(-dims // width)) + width * value_bytes)


def n_of_m_bytes(rows: int, dims: int, live: int, n: int, m: int, value_bytes: int) -> int:
    """Groups of m columns with n places each, b = ⌈log₂ m⌉ bits a place: rows · ⌈⌈D / m⌉ · n · b / 8⌉ + L · v.

    One more number stands for "none" where not all places are taken. No layout of ours: where they are all taken,
    `delta` or `bitmap` is within a twentieth of it, and else smaller (tests/export holds them to that).
    """
    groups = -(-dims // m)
    bits = (m - 1 if live == rows * groups * n else m).bit_length()
    return rows * -(-groups * n * bits // 8) + live * value_bytes


@dataclass(frozen=True)
class Storage:
    """A way to store a matrix, with all that its size depends on.

    Attributes:
        parameter: bits of a code (`delta`), columns of a block (`block`), else 0.
        longest: live entries of the longest row.
        count: codes (`delta`) or blocks (`block`), else 0.
    """

    layout: Layout
    parameter: int
    rows: int
    dims: int
    live: int
    longest: int
    count: int
    value_bytes: int

    @property
    def bytes(self) -> int:
        """By the formula of the layout."""
        rows, dims, live, value_bytes = self.rows, self.dims, self.live, self.value_bytes
        match self.layout:
            case "csr":
                return csr_bytes(rows, dims, live, value_bytes)
            case "ell":
                return ell_bytes(rows, dims, self.longest, value_bytes)
            case "bitmap":
                return bitmap_bytes(rows, dims, live, value_bytes)
            case "delta":
                return delta_bytes(rows, live, self.longest, self.count, self.parameter, value_bytes)
            case "block":
                return block_bytes(rows, dims, self.count, self.parameter, value_bytes)


@dataclass(frozen=True)
class Facts:
    """What the sizes of a matrix depend on.

    Attributes:
        longest: live entries of the longest row.
        codes: for 1, 2, … bits the codes of `delta`; as many as D has bits.
        blocks: for each of `WIDTHS` the blocks that have a live entry.
    """

    rows: int
    dims: int
    live: int
    longest: int
    codes: tuple[int, ...]
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, dims: int, lengths: np.ndarray, columns: np.ndarray) -> Facts:
        """Those of rows with these lengths, int64 [m], and these columns, int64 [L], rising in each row."""
        gaps = gaps_of(lengths, columns)
        longest = int(lengths.max(initial=0))
        codes = tuple(count_codes(gaps, bits) for bits in range(1, dims.bit_length() + 1))
        return cls(len(lengths), dims, len(columns), longest, codes,
                   tuple(count_blocks(lengths, columns, width) for width in WIDTHS))  # fmt: skip

    @classmethod
    def expected(cls, rows: int, dims: int, live: int, longest: int) -> Facts:
        """Those to expect if every position is live with the same probability, whatever the others are.

        A gap is then geometric, and with q the share of positions that are not live E⌊gap / s⌋ = q^s / (1 − q^s).
        """
        free = 1.0 - live / (rows * dims)
        codes = []
        for bits in range(1, dims.bit_length() + 1):
            beyond = free ** (2**bits - 1)
            codes.append(round(live + live * beyond / (1.0 - beyond)) if live else 0)
        blocks = tuple(round(rows * dims / width * (1.0 - free**width)) for width in WIDTHS)
        return cls(rows, dims, live, longest, tuple(codes), blocks)

    def __add__(self, more: Facts) -> Facts:
        """With further rows."""
        return Facts(
            self.rows + more.rows,
            self.dims,
            self.live + more.live,
            max(self.longest, more.longest),
            tuple(mine + its for mine, its in zip(self.codes, more.codes, strict=True)),
            tuple(mine + its for mine, its in zip(self.blocks, more.blocks, strict=True)),
        )


def gaps_of(lengths: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Columns between each live entry and the one before it in its row, int64 [L]; of a row's first, all before it."""
    before = np.concatenate([[-1], columns[:-1]])
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    before[starts] = -1
    return columns - before - 1


def count_codes(gaps: np.ndarray, bits: int) -> int:
    """Codes of `bits` bits for these gaps: one each, and one more for every 2^bits − 1 columns of it."""
    step = 2**bits - 1
    if step > gaps.max(initial=0):
        return len(gaps)
    return len(gaps) + int((gaps // step).sum())


def count_blocks(lengths: np.ndarray, columns: np.ndarray, width: int) -> int:
    """Blocks of `width` columns that have a live entry, counted row by row."""
    return int(starts_of_blocks(lengths, columns // width).sum())


def starts_of_blocks(lengths: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which entries are their block's first, bool [L]; `numbers` are those of the entries' blocks."""
    first = np.ones(len(numbers), bool)
    first[1:] = numbers[1:] != numbers[:-1]
    first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    return first


def ways(facts: Facts, value_bytes: int, layouts: Iterable[Layout] = LAYOUTS) -> list[Storage]:
    """Every way to store the matrix: delta codes of every width, blocks of every width."""
    found = []
    for layout in layouts:
        counts = {"delta": enumerate(facts.codes, 1), "block": zip(WIDTHS, facts.blocks, strict=True)}
        for parameter, count in counts.get(layout, [(0, 0)]):
            found.append(
                Storage(layout, parameter, facts.rows, facts.dims, facts.live, facts.longest, count, value_bytes)
            )
    return found


def choose(facts: Facts, value_bytes: int, layouts: Iterable[Layout] = LAYOUTS) -> Storage:
    """The smallest way among these layouts."""
    return min(ways(facts, value_bytes, layouts), key=lambda way: way.bytes)
