"""What is read from a checkpoint, once its files are known to be whole.

In: a checkpoint. Out: its tensors, in place, in as many shards as there are ranks now; its arrays.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
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
from hse_dist.checkpoint.streams import Files, Reader
from hse_dist.errors import RunFolderError


def read_shards(place: Place, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    """Fill `state` in place; a collective call.

    Raises:
        RunFolderError: the checkpoint is damaged or does not fit.
    """
    with _readable_errors(checkpoint), _quiet():
        if not checkpoint.checked:
            check_all(place, checkpoint)
        dcp.load(state, storage_reader=Reader(Files(place, checkpoint.name, checkpoint.manifest.files)))


def read_arrays(place: Place, checkpoint: Checkpoint, name: str) -> dict[str, np.ndarray]:
    """The arrays of one file.

    Raises:
        RunFolderError: the file is damaged.
    """
    with _readable_errors(checkpoint):
        data = Files(place, checkpoint.name, checkpoint.manifest.files).read_checked(name)
        with np.load(io.BytesIO(data)) as arrays:
            return dict(arrays)


@contextmanager
def _readable_errors(checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:
        raise RunFolderError(f"The checkpoint {checkpoint.address} cannot be read: {words_of(error)}") from None
    # the last four are what is said of content that the manifest vouches for and that is nonsense all the same
    except (Damaged, OSError, EOFError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise RunFolderError(f"The checkpoint {checkpoint.address} cannot be read: {error}.") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of ShardedTensor, which is TorchRec's choice: that DTensor is newer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
