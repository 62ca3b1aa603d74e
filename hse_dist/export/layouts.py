"""The layouts of `sizes.py` as arrays, and back.

In: rows in order, piece by piece. Out: the arrays' next lines; and from the arrays the same rows.

* `csr`: offsets, columns, values.
* `ell`: columns and values, [m, longest]; D stands for no column.
* `bitmap`: bits [m, ⌈D / 8⌉], column 8 · byte + bit with the lowest bit first; values.
* `delta`: lengths of the rows; codes of b bits each (`bits.py`): 2^b − 1 says "that many columns on", any other number
  says "so many columns on there is a live entry", and the next code begins behind it. A row begins at column 0. Values.
* `block`: offsets and numbers of blocks; values [blocks, w], columns number · w on. What is not live holds −0, which
  adds up as a zero, and which no live entry has: the export writes those as +0.

Values come in the order of the rows and, within a row, of the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hse_dist.export.bits import GROUP, pack, unpack
from hse_dist.export.npy import Part
from hse_dist.export.sizes import Layout, Storage, gaps_of, offset_bytes, starts_of_blocks, unsigned

CODES_AT_A_TIME = 2**20
BYTES_AT_A_TIME = 2**25
"""Of a bitmap."""

Arrays = Mapping[str, np.ndarray]
Csr = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Offsets int64 [m + 1], columns int64 or int32 [L], values [L]."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows: lengths int64 [m], columns int64 [L] rising in each row, values float32 or float16 [L]."""

    lengths: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @property
    def owner(self) -> np.ndarray:
        """The row of each entry, int64 [L]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def parts(storage: Storage) -> dict[str, Part]:
    """The arrays of a layout; without headers they have `storage.bytes`."""
    rows, dims, live, count, width = storage.rows, storage.dims, storage.live, storage.count, storage.parameter
    flat = Part(f"<f{storage.value_bytes}", (live,))
    match storage.layout:
        case "csr":
            offsets, columns = Part(f"<u{offset_bytes(live)}", (rows + 1,)), Part(f"<u{unsigned(dims)}", (live,))
            return {"offsets": offsets, "columns": columns, "values": flat}
        case "ell":
            shape = (rows, storage.longest)
            return {"columns": Part(f"<u{unsigned(dims + 1)}", shape), "values": Part(flat.dtype, shape)}
        case "bitmap":
            return {"bits": Part("<u1", (rows, -(-dims // 8))), "values": flat}
        case "delta":
            lengths = Part(f"<u{unsigned(storage.longest + 1)}", (rows,))
            return {"lengths": lengths, "codes": Part("<u1", (-(-count // GROUP) * width,)), "values": flat}
        case "block":
            offsets = Part(f"<u{offset_bytes(count)}", (rows + 1,))
            numbers = Part(f"<u{unsigned(-(-dims // width))}", (count,))
            return {"offsets": offsets, "numbers": numbers, "values": Part(flat.dtype, (count, width))}


def encode(storage: Storage, pieces: Iterable[Rows]) -> Iterator[Arrays]:
    """The next lines of the layout's arrays for each piece; perhaps some more at the end."""
    return _ENCODERS[storage.layout](storage, pieces)


def decode(storage: Storage, arrays: Arrays) -> Csr:
    """The rows.

    Raises:
        ValueError: the arrays, which have the types and shapes of `parts`, do not fit one another.
    """
    offsets, columns, values = _DECODERS[storage.layout](storage, arrays)
    if len(columns) != storage.live or len(values) != storage.live:
        raise ValueError("its live entries are others")
    return offsets, columns, values


def _encode_csr(storage: Storage, pieces: Iterable[Rows]) -> Iterator[Arrays]:
    end = np.zeros(1, np.int64)
    yield {"offsets": end}
    for rows in pieces:
        ends = end[-1] + np.cumsum(rows.lengths)
        yield {"offsets": ends, "columns": rows.columns, "values": rows.values}
        end = ends if len(ends) else end


def _decode_csr(storage: Storage, arrays: Arrays) -> Csr:
    return _rising(arrays["offsets"], storage.live), arrays["columns"], arrays["values"]


def _rising(offsets: np.ndarray, count: int) -> np.ndarray:
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
        raise ValueError("offsets.npy does not rise from 0 to the entries")
    return offsets


def _encode_ell(storage: Storage, pieces: Iterable[Rows]) -> Iterator[Arrays]:
    for rows in pieces:
        shape = (len(rows.lengths), storage.longest)
        columns, values = np.full(shape, storage.dims), np.zeros(shape, rows.values.dtype)
        live = np.arange(storage.longest) < rows.lengths[:, None]
        columns[live], values[live] = rows.columns, rows.values
        yield {"columns": columns, "values": values}


def _decode_ell(storage: Storage, arrays: Arrays) -> Csr:
    live = arrays["columns"] != storage.dims
    return _offsets(live.sum(1)), arrays["columns"][live], arrays["values"][live]


def _encode_bitmap(storage: Storage, pieces: Iterable[Rows]) -> Iterator[Arrays]:
    width = -(-storage.dims // 8)
    for rows in pieces:
        bits = np.zeros(len(rows.lengths) * width, np.uint8)
        if len(rows.columns):
            place = rows.owner * width + rows.columns // 8
            first = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))
            bit = np.left_shift(1, rows.columns % 8).astype(np.uint8)
            bits[place[first]] = np.bitwise_or.reduceat(bit, first)
        yield {"bits": bits, "values": rows.values}


def _decode_bitmap(storage: Storage, arrays: Arrays) -> Csr:
    bits, lengths, columns = arrays["bits"], [], []
    step = max(1, BYTES_AT_A_TIME // max(bits.shape[1], 1))
    for first in range(0, storage.rows, step):
        owner, byte = np.nonzero(bits[first : first + step])  # most bytes of a sparse row are 0
        entry, bit = np.nonzero(np.unpackbits(bits[first + owner, byte][:, None], axis=1, bitorder="little"))
        lengths.append(np.bincount(owner[entry], minlength=len(bits[first : first + step])))
        columns.append((byte[entry] * 8 + bit).astype(np.uint32))
    return _offsets(_joined(lengths, np.int64)), _joined(columns, np.uint32), arrays["values"]


def _encode_delta(storage: Storage, pieces: Iterable[Rows]) -> Iterator[Arrays]:
    bits, left = storage.parameter, np.zeros(0, np.int64)
    step = 2**bits - 1
    for rows in pieces:
        gaps = gaps_of(rows.lengths, rows.columns)
        padding = gaps // step
        codes = np.full(len(gaps) + int(padding.sum()), step)
        codes[np.cumsum(padding + 1) - 1] = gaps - padding * step
        codes = np.concatenate([left, codes])
        whole = len(codes) // GROUP * GROUP
        left = codes[whole:]
        yield {"lengths": rows.lengths, "codes": pack(codes[:whole], bits), "values": rows.values}
    if len(left):
        yield {"codes": pack(np.concatenate([left, np.zeros(GROUP - len(left), np.int64)]), bits)}


def _decode_delta(storage: Storage, arrays: Arrays) -> Csr:
    bits, packed, lengths = storage.parameter, arrays["codes"], arrays["lengths"].astype(np.int64)
    ends, found, total = np.empty(storage.live + 1, np.int64), 0, 0
    ends[0] = 0
    if int(lengths.sum()) != storage.live:
        raise ValueError("lengths.npy has other live entries")
    for first in range(0, storage.count, CODES_AT_A_TIME):
        last = min(first + CODES_AT_A_TIME, storage.count)
        codes = unpack(packed[first // GROUP * bits : -(-last // GROUP) * bits], bits)[: last - first]
        live = codes != 2**bits - 1
        reached = np.cumsum(codes + live) + total
        some = reached[live]
        if found + len(some) > storage.live:
            raise ValueError("codes.npy has more live entries")
        ends[found + 1 : found + 1 + len(some)] = some
        found, total = found + len(some), int(reached[-1])
    if found != storage.live:
        raise ValueError("codes.npy has fewer live entries")
    offsets = _offsets(lengths)
    # the codes go on from row to row: a row's first column is counted from the end of the row before
    columns = ends[1:] - 1
    columns -= np.repeat(ends[offsets[:-1]], lengths)
    return offsets, columns, arrays["values"]


def _encode_block(storage: Storage, pieces: Iterable[Rows]) -> Iterator[Arrays]:
    width, end = storage.parameter, 0
    yield {"offsets": np.zeros(1, np.int64)}
    for rows in pieces:
        numbers = rows.columns // width
        first = starts_of_blocks(rows.lengths, numbers)
        block = np.cumsum(first) - 1
        values = np.full((int(first.sum()), width), -0.0, rows.values.dtype)
        values[block, rows.columns - numbers * width] = rows.values
        ends = end + np.cumsum(np.bincount(rows.owner[first], minlength=len(rows.lengths)))
        yield {"offsets": ends, "numbers": numbers[first], "values": values}
        end += len(values)


def _decode_block(storage: Storage, arrays: Arrays) -> Csr:
    width, values = storage.parameter, arrays["values"]
    ends = _rising(arrays["offsets"], storage.count)
    live = ~(np.signbit(values) & (values == 0))
    block, place = np.nonzero(live)
    columns = arrays["numbers"][block].astype(np.int64) * width + place
    return _offsets(live.sum(1))[ends], columns, values[live]


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _joined(pieces: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *pieces])


_ENCODERS: dict[Layout, Callable[[Storage, Iterable[Rows]], Iterator[Arrays]]] = {
    "csr": _encode_csr,
    "ell": _encode_ell,
    "bitmap": _encode_bitmap,
    "delta": _encode_delta,
    "block": _encode_block,
}
_DECODERS: dict[Layout, Callable[[Storage, Arrays], Csr]] = {
    "csr": _decode_csr,
    "ell": _decode_ell,
    "bitmap": _decode_bitmap,
    "delta": _decode_delta,
    "block": _decode_block,
}
