"""What is read from a checkpoint, once its files are known to be whole.

In: a checkpoint. Out: its tensors, in place, in as many shards as there are ranks now; its arrays.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from hse_dist.checkpoint.finding import Checkpoint, check_all
from hse_dist.checkpoint.group import words_of
from hse_dist.checkpoint.manifest import Damaged
from hse_dist.checkpoint.place import Place
from hse_dist.checkpoint.streams import Files, Reader, TensorsOnly
from hse_dist.errors import RunFolderError

NONSENSE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile, NumPy and torch raise of files that no program of theirs wrote."""


def read_shards(place: Place, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    """Fill `state` in place; a collective call.

    Raises:
        RunFolderError: the checkpoint is damaged or does not fit.
    """
    with _readable_errors(checkpoint), _quiet():
        if not checkpoint.checked:
            check_all(place, checkpoint)
        reader = Reader(Files(place, checkpoint.name, checkpoint.manifest.files))
        dcp.load(state, storage_reader=reader, planner=TensorsOnly())


def read_arrays(place: Place, checkpoint: Checkpoint, name: str) -> dict[str, np.ndarray]:
    """The arrays of one file.

    Raises:
        RunFolderError: the file is damaged.
    """
    with _readable_errors(checkpoint):
        data = Files(place, checkpoint.name, checkpoint.manifest.files).read_checked(name)
        _refuse_bombs(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)


def _refuse_bombs(data: bytes) -> None:
    """Raise ValueError where an archive's arrays are larger than itself: NumPy writes them without compression."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(member.compress_type or member.file_size > len(data) for member in archive.infolist()):
            raise ValueError("its arrays are larger than the file")
        for member in archive.infolist():
            with archive.open(member) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError(f"{member.filename} is no array")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"{member.filename} has fewer numbers than it says")


@contextmanager
def fitting(checkpoint: Checkpoint) -> Iterator[None]:
    """While what a checkpoint says is taken up: what does not fit together is its fault.

    Raises:
        RunFolderError: it does not.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunFolderError(
            f"The checkpoint {checkpoint.address} does not hold what a run needs to go on: "
            f"{type(error).__name__}: {error}.",
            cause="It was changed, or written by something else: remove it to go on from the one before.",
        ) from error


@contextmanager
def _readable_errors(checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:
        raise RunFolderError(f"The checkpoint {checkpoint.address} cannot be read: {words_of(error)}") from None
    # all but the first two are said of content that the manifest vouches for and that is nonsense all the same
    except (Damaged, OSError, *NONSENSE) as error:
        raise RunFolderError(f"The checkpoint {checkpoint.address} cannot be read: {error}.") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of ShardedTensor, which is TorchRec's choice: that DTensor is newer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
