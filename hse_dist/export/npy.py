"""Arrays as `.npy` files, written piece by piece and read without being copied.

In: parts of known type and shape, and pieces of them. Out: a file a part, which `numpy.load` reads or maps into memory.
Beside its numbers a file has a header of 128 bytes.
"""

from __future__ import annotations

import math
import tokenize
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hse_dist.files import refuse_devices

HEADER_BYTES = 128
"""NumPy brings a header to a multiple of 64 bytes, with room for any number of lines."""


class Part(NamedTuple):
    """Type (little-endian) and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Without the header."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))


def write_arrays(folder: Path, parts: Mapping[str, Part], pieces: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write `NAME.npy` for each part; every piece is the next lines of some of them, in any type that fits."""
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in parts}
        for name, part in parts.items():
            header = {"descr": part.dtype, "fortran_order": False, "shape": part.shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        for piece in pieces:
            for name, lines in piece.items():
                files[name].write(lines.astype(parts[name].dtype, copy=False).tobytes())
        for name, part in parts.items():
            assert files[name].tell() == HEADER_BYTES + part.bytes, name


def open_array(folder: Path, name: str, part: Part) -> np.ndarray:
    """The array of `NAME.npy`, mapped into memory.

    Raises:
        OSError: it cannot be read. ValueError: it is another array or none; both name the file.
    """
    path = folder / f"{name}.npy"
    refuse_devices(path)
    with path.open("rb") as file:
        # the header is held against what is expected before anything is made of it
        try:
            version = np.lib.format.read_magic(file)
            shape, transposed, dtype = np.lib.format.read_array_header_1_0(file)
        # the last ones are what Python's parser says of a header that is nested deeply
        except (
            ValueError,
            EOFError,
            SyntaxError,
            TypeError,
            tokenize.TokenError,
            RecursionError,
            MemoryError,
        ) as error:
            raise ValueError(f"{path.name} is no array ({error})") from None
        header, size = file.tell(), path.stat().st_size
    if version != (1, 0) or transposed or dtype.str.replace("|", "<") != part.dtype or shape != part.shape:
        raise ValueError(f"{path.name} is {dtype.str} {shape}, not {part.dtype} {part.shape}")
    if header + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{path.name} has {size} bytes, which is not what its header says")
    return np.asarray(np.memmap(path, dtype, "r", header, shape))
