"""Finds the compiled kernels and calls them.

In: names, tensors, arrays and numbers. Out: what the kernels wrote into the tensors. The library has a plain C face and
is loaded with ctypes, which releases the interpreter lock during a call. It is built when the project is installed
(pyproject.toml, `ext-modules`) where there is a C++ compiler; everything works without it, and takes longer.

`HSE_NATIVE=0` leaves it unused.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # an export answers without torch
    from torch import Tensor

log = logging.getLogger(__name__)

VERSION = 0xDA78F74D
"""Of the kernels' signatures. A library that was built from other ones would take arguments for what they are not, and
answer with garbage; a test computes the number from the sources."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they were not built, cannot be loaded, are of other sources, or not wanted."""
    if os.environ.get("HSE_NATIVE", "1") == "0":
        return None
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        log.warning("The compiled kernels were not built (no C++ compiler at installation?): all takes longer.")
        return None
    try:
        loaded = ctypes.CDLL(str(found[0]))
    except OSError as error:
        log.warning("The compiled kernels cannot be loaded (%s): all takes longer.", error)
        return None
    if _version(loaded) != VERSION:
        log.warning("The compiled kernels were built from other sources: all takes longer. Build anew: make install.")
        return None
    return loaded


def _version(loaded: ctypes.CDLL) -> int | None:
    try:
        version = loaded.hse_version
    except AttributeError:  # older than versions
        return None
    version.restype = ctypes.c_int64
    return int(version())


def call(name: str, *arguments: Tensor | np.ndarray | int | float | None) -> int:
    """Call the kernel `name`; tensors and arrays go by address, whole numbers as int64, others as double.

    The caller answers for types, sizes and bounds: the kernels check nothing.

    Returns:
        what the kernel returns, an int64; 0 where it returns nothing.
    """
    found = library()
    assert found is not None, "ask library() first"
    kernel = getattr(found, name)
    kernel.restype = ctypes.c_int64
    return kernel(*[_native(argument) for argument in arguments])


def _native(argument: Tensor | np.ndarray | int | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, int | float):
        return ctypes.c_int64(argument) if isinstance(argument, int) else ctypes.c_double(argument)
    assert argument.is_contiguous() and argument.device.type == "cpu"
    return ctypes.c_void_p(argument.data_ptr())
