"""What a chunk looks like between two ranks; plugs into TorchRec's registry of codecs.

In: settings of the wire, and the shape of a chunk. Out: a registry a collection. Columns go out in two or three bytes,
without loss; values in four or two; gradients come back as the strongest r of w slots: a bitmap of w bits and r numbers
(Hoefler et al., arXiv 2102.00554, §6 on gradient sparsification). Everything is of fixed size a chunk, since a codec
hears neither ids nor ranks, only how much goes where. What must not get lost is `feedback.py`'s business.

On a CPU the work is done by compiled kernels; a plain torch path does the same bit for bit.

Shapes: N chunks, w slots a chunk, r of them sent. Buffers are flat.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from hse_dist.config import WireSettings
from hse_dist.native.library import call, library
from hse_dist.tables.numbers import padded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2}
"""Numbers of the types in native/wire.cpp."""

LARGEST_HALF = 65504.0
TWO_BYTES = 2**16
"""Columns and the code of a free slot, as numbers below this, go in two bytes."""

Registry = dict[str, QuantizedCommCodecs]


class Codec:
    """A codec that changes nothing; TorchRec asks for exactly these methods.

    Its own no-op codec has `quantized_dtype` as a method, on which the planner fails (design.md §6).
    """

    @property
    def quantized_dtype(self) -> torch.dtype:
        """Of what `encode` gives."""
        return torch.float32

    def encode(self, numbers: Tensor, ctx: None = None) -> Tensor:
        """Numbers float32 [N · w] or [N, w], as they are sent."""
        return numbers

    def decode(self, buffer: Tensor, ctx: None = None) -> Tensor:
        """What was sent, as float32 [N · w]."""
        return buffer

    def calc_quantized_size(self, numbers: int, ctx: None = None) -> int:
        """Elements of the buffer for so many numbers."""
        return numbers

    def create_context(self) -> None:
        """There is no state."""
        return None

    def bytes_of(self, numbers: int) -> int:
        """Bytes of the buffer for so many numbers."""
        return self.calc_quantized_size(numbers) * self.quantized_dtype.itemsize


class HalfValues(Codec):
    """Values in two bytes (IEEE half); those beyond ±65 504 arrive as that.

    Attributes:
        paused: values go as they are. For rows that are looked up not to train them, but to rank or export them.
    """

    paused = False

    @property
    def quantized_dtype(self) -> torch.dtype:
        return torch.float32 if self.paused else torch.float16

    def encode(self, numbers: Tensor, ctx: None = None) -> Tensor:
        return numbers if self.paused else rounded(numbers, "float16").to(torch.float16)

    def decode(self, buffer: Tensor, ctx: None = None) -> Tensor:
        return buffer.to(torch.float32)


class Columns(Codec):
    """Column numbers, exact: two bytes each where D and the code of a free slot fit, else three.

    Args:
        dims: D, itself the code of a free slot; of blocks D / b.
        stored: numbers of a chunk, of which only the first `sent` go out; None: all.
    """

    def __init__(self, dims: int, stored: int = 1, sent: int | None = None) -> None:
        self.width = 2 if dims < TWO_BYTES else 3
        self.dims, self.stored, self.sent = dims, stored, stored if sent is None else sent

    @property
    def quantized_dtype(self) -> torch.dtype:
        return torch.uint8

    def encode(self, numbers: Tensor, ctx: None = None) -> Tensor:
        chosen = numbers.detach().contiguous().view(-1, self.stored)[:, : self.sent]
        flat = chosen.contiguous().view(-1)
        if compiled(flat):
            out = torch.empty(self.width * len(flat), dtype=torch.uint8)
            call("hse_pack_columns", len(flat), self.width, flat, out)
            return out
        return _bytes(flat.to(torch.int32))[:, : self.width].reshape(-1)

    def decode(self, buffer: Tensor, ctx: None = None) -> Tensor:
        count = len(buffer) // self.width
        if compiled(buffer):
            out = torch.empty(count, dtype=torch.float32)
            call("hse_unpack_columns", count, self.width, buffer, out)
        else:
            wide = torch.nn.functional.pad(buffer.view(count, self.width), (0, 4 - self.width))
            out = wide.view(torch.int32).view(-1).to(torch.float32)
        if self.sent < self.stored:
            out = padded(out.view(-1, self.sent), self.stored, self.dims).view(-1)
        return out

    def calc_quantized_size(self, numbers: int, ctx: None = None) -> int:
        return numbers // self.stored * self.sent * self.width


class StrongestGradients(Codec):
    """The strongest r of each chunk's w gradients, ties to the lower slot; where r = w all of them, without a bitmap.

    What is left out is lost here. A NaN counts as the strongest of all, so that it stays visible.

    Args:
        width: w. sent: r. dtype: a name of `DTYPES`; float16 saturates at ±65 504.
    """

    def __init__(self, width: int, sent: int, dtype: str) -> None:
        self.width, self.sent, self.dtype = width, sent, dtype
        bitmap = width // 8 if sent < width else 0
        self.chunk_bytes = bitmap + sent * DTYPES[dtype].itemsize

    @property
    def exact(self) -> bool:
        """Whether nothing is left out and nothing rounded."""
        return self.sent == self.width and self.dtype == "float32"

    @property
    def quantized_dtype(self) -> torch.dtype:
        return torch.uint8

    def encode(self, numbers: Tensor, ctx: None = None) -> Tensor:
        grad_nw = numbers.detach().contiguous().view(-1, self.width)
        if not compiled(grad_nw):
            return self._plain_encode(grad_nw)
        out = torch.empty(len(grad_nw) * self.chunk_bytes, dtype=torch.uint8)
        call("hse_pack_gradients", len(grad_nw), self.width, self.sent, KINDS[self.dtype], grad_nw, out)
        return out

    def decode(self, buffer: Tensor, ctx: None = None) -> Tensor:
        chunks = len(buffer) // self.chunk_bytes
        if not compiled(buffer):
            return self._plain_decode(buffer.view(chunks, self.chunk_bytes)).view(-1)
        out = torch.empty(chunks * self.width, dtype=torch.float32)
        call("hse_unpack_gradients", chunks, self.width, self.sent, KINDS[self.dtype], buffer, out)
        return out

    def calc_quantized_size(self, numbers: int, ctx: None = None) -> int:
        return numbers // self.width * self.chunk_bytes

    def plain_way(self, grad_nw: Tensor) -> Tensor:
        """There and back by the plain path, for benchmarks."""
        return self._plain_decode(self._plain_encode(grad_nw).view(len(grad_nw), self.chunk_bytes))

    def _plain_encode(self, grad_nw: Tensor) -> Tensor:
        narrow = rounded(grad_nw, self.dtype).to(DTYPES[self.dtype])
        if self.sent == self.width:
            return narrow.view(torch.uint8).view(-1)
        chosen = strongest(grad_nw, self.sent)
        bits = chosen.view(len(grad_nw), self.width // 8, 8).to(torch.uint8) << _places(grad_nw.device)
        numbers = narrow[chosen].view(len(grad_nw), self.sent).contiguous().view(torch.uint8)
        return torch.cat([bits.sum(2, dtype=torch.uint8), numbers], 1).view(-1)

    def _plain_decode(self, buffer: Tensor) -> Tensor:
        dtype = DTYPES[self.dtype]
        if self.sent == self.width:
            return buffer.contiguous().view(dtype).to(torch.float32)
        # a copy in any case: what begins at an odd byte cannot be read as numbers, however contiguous it is
        bitmap, numbers = buffer[:, : self.width // 8], buffer[:, self.width // 8 :].flatten().clone().view(dtype)
        chosen = ((bitmap[:, :, None] >> _places(buffer.device)) & 1).view(len(buffer), self.width).bool()
        out = torch.zeros(len(buffer), self.width, device=buffer.device)
        out[chosen] = numbers.to(torch.float32).view(-1)
        return out


def compiled(tensor: Tensor) -> bool:
    """Whether the compiled kernels can take it."""
    return tensor.device.type == "cpu" and library() is not None


def strongest(grad_nw: Tensor, sent: int) -> Tensor:
    """Which slots are the `sent` strongest of their chunk, bool [N, w]; ties go to the lower slot."""
    size = grad_nw.view(torch.int32) & 0x7FFFFFFF  # the bits of |x| are in the order of |x|, NaN above all
    order = size.sort(dim=1, descending=True, stable=True).indices[:, :sent]
    return torch.zeros_like(grad_nw, dtype=torch.bool).scatter_(1, order, True)


def rounded(numbers: Tensor, dtype: str) -> Tensor:
    """The numbers as they arrive when sent as `dtype`, float32."""
    if dtype == "float16":
        numbers = numbers.clamp(-LARGEST_HALF, LARGEST_HALF)
    return numbers.to(DTYPES[dtype]).to(torch.float32)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, device=device).to(torch.uint8)


def _bytes(numbers: Tensor) -> Tensor:
    """The bytes of int32 numbers, lowest first, uint8 [n, 4]."""
    assert sys.byteorder == "little"
    return numbers.contiguous().view(-1, 1).view(torch.uint8)


def value_codecs(wire: WireSettings, width: int) -> tuple[Codec, StrongestGradients]:
    """Codecs of values on their way out and of gradients on their way back."""
    forward = HalfValues() if wire.values == "float16" else Codec()
    return forward, StrongestGradients(width, wire.gradient_slots or width, wire.gradients)


def registry(forward: Codec, backward: Codec) -> Registry:
    """What a sharder takes."""
    if isinstance(backward, StrongestGradients) and backward.exact:
        backward = Codec()  # bytes would be copied for nothing
    codecs: Any = QuantizedCommCodecs(forward=forward, backward=backward)
    return {CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL.name: codecs}
