"""Column numbers of chunks, as a table stores them.

In: chunks of w slots, of which each b adjacent ones (1: a slot by itself) hold b adjacent columns under one number, the
first column / b. Out: how many numbers a chunk has, what they stand for, and the same memory as whole numbers.

fbgemm refuses tables whose width is no multiple of four, so a chunk may store more numbers than it has; those at its
end always have the code of free slots, and do not go over the wire.

Shapes: N chunks, w slots, p = w / b numbers that count, s that are stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hse_dist.native.library import call, library

MULTIPLE = 4
TURNED_AT_A_TIME = 2**22
"""Numbers that change between float32 and int32 at once."""


def stored_numbers(width: int, block: int) -> int:
    """s, of a chunk of `width` slots."""
    return -(-(width // block) // MULTIPLE) * MULTIPLE


def columns_of(numbers_ns: Tensor, width: int, block: int) -> Tensor:
    """The column of each slot, float32 [N, w]; `dims` and more where a slot is free.

    Args:
        numbers_ns: float32 [N, s]. width: w. block: b.
    """
    if block == 1:
        return numbers_ns
    if numbers_ns.device.type == "cpu" and library() is not None:
        out = torch.empty(len(numbers_ns), width)
        call("hse_columns_of_blocks", len(numbers_ns), numbers_ns.shape[1], width, block, numbers_ns.contiguous(), out)
        return out
    first = numbers_ns[:, : width // block, None] * block
    return (first + torch.arange(block, device=first.device)).view(-1, width)


def padded(numbers_np: Tensor, stored: int, free: int) -> Tensor:
    """Numbers that count, [N, p], with those that do not, [N, s]."""
    if stored == numbers_np.shape[1]:
        return numbers_np
    return torch.nn.functional.pad(numbers_np, (0, stored - numbers_np.shape[1]), value=free)


def whole_numbers(numbers: Tensor) -> Tensor:
    """float32 [n] turned into int32 in its own memory."""
    turned = numbers.view(torch.int32)
    for part, to in zip(numbers.split(TURNED_AT_A_TIME), turned.split(TURNED_AT_A_TIME), strict=True):
        to.copy_(part.to(torch.int32))
    return turned


def floats(numbers: Tensor) -> None:
    """The way back."""
    turned = numbers.view(torch.int32)
    for part, to in zip(turned.split(TURNED_AT_A_TIME), numbers.split(TURNED_AT_A_TIME), strict=True):
        to.copy_(part.to(torch.float32))
