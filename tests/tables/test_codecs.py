"""Codecs against a slow reference, compiled and plain, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hse_dist.config import MAX_DIMS, WireSettings
from hse_dist.native.library import library
from hse_dist.tables import codecs
from hse_dist.tables.codecs import Codec, Columns, HalfValues, StrongestGradients, registry, value_codecs

CHUNKS = 300
PATHS = ["compiled", "plain"]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(codecs, "compiled", lambda tensor: False)
    elif library() is None:
        pytest.skip("the kernels were not built")
    return request.param


def gradients(width: int) -> torch.Tensor:
    """Chunks [CHUNKS, width] of all sizes, with ties, zeros of both signs, and numbers that no half can hold."""
    rng = np.random.default_rng(width)
    grad = rng.standard_normal((CHUNKS, width)) * 10.0 ** rng.integers(-9, 6, (CHUNKS, 1))
    grad[:40] = rng.choice([-2.0, -1.0, 0.0, -0.0, 1.0, 2.0], (40, width))
    grad[40, 3], grad[41, 5], grad[42] = np.nan, -np.inf, 0.0
    return torch.from_numpy(grad.astype(np.float32))


def as_sent(number: np.float32, dtype: str) -> np.ndarray:
    """One number after the way, by numpy, as bits that can be compared (NaN as NaN)."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            number = np.clip(number, np.float32(-65504), np.float32(65504)).astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        number = torch.tensor(number).to(torch.bfloat16).float().numpy()
    return number


def reference(grad_nw: torch.Tensor, sent: int, dtype: str) -> np.ndarray:
    """Slot by slot: the strongest `sent`, ties to the lower slot, NaN before all."""
    out = np.zeros(grad_nw.shape, np.float32)
    for chunk, grad in enumerate(grad_nw.numpy()):
        size = [np.inf if np.isnan(g) else abs(g) for g in grad]
        order = sorted(range(len(grad)), key=lambda slot: (not np.isnan(grad[slot]), -size[slot], slot))
        for slot in order[:sent]:
            out[chunk, slot] = as_sent(grad[slot], dtype)
    return out


@pytest.mark.parametrize("dtype", list(codecs.DTYPES))
@pytest.mark.parametrize(("width", "sent"), [(8, 1), (8, 2), (8, 8), (16, 4), (16, 15), (16, 16), (32, 8), (32, 31)])
def test_the_strongest_arrive_rounded_and_nothing_else(path, width, sent, dtype):
    grad, codec = gradients(width), StrongestGradients(width, sent, dtype)
    buffer = codec.encode(grad.view(-1))
    assert buffer.dtype == codec.quantized_dtype and len(buffer) == codec.calc_quantized_size(grad.numel())
    got = codec.decode(buffer).view(-1, width)
    np.testing.assert_array_equal(got.numpy(), reference(grad, sent, dtype))
    # what arrived loses nothing on a second way: error feedback picks and rounds before the codec does
    np.testing.assert_array_equal(codec.decode(codec.encode(got)).view(-1, width).numpy(), got.numpy())


@pytest.mark.parametrize("dtype", list(codecs.DTYPES))
@pytest.mark.parametrize(("width", "sent"), [(8, 2), (16, 4), (16, 16)])
@pytest.mark.parametrize("chunks", [0, 1])
def test_a_rank_may_have_one_chunk_to_tell_or_none(path, chunks, width, sent, dtype):
    grad, codec = gradients(width)[50 : 50 + chunks], StrongestGradients(width, sent, dtype)
    got = codec.decode(codec.encode(grad.view(-1)))
    np.testing.assert_array_equal(got.view(chunks, width).numpy(), reference(grad, sent, dtype))
    columns, numbers = Columns(65_536), torch.arange(50_000.0, 50_000.0 + chunks * width)
    assert torch.equal(columns.decode(columns.encode(numbers)), numbers)


@pytest.mark.skipif(library() is None, reason="the kernels were not built")
@pytest.mark.parametrize("dtype", list(codecs.DTYPES))
@pytest.mark.parametrize("sent", [3, 16])
def test_both_paths_write_the_same_bytes(monkeypatch, sent, dtype):
    # every float16 and its neighbours: where rounding is decided
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    grad = torch.cat([halves, halves.nextafter(torch.tensor(torch.inf)), halves * 1.0005, gradients(16).view(-1)])
    grad = grad[~grad.isnan()]
    grad, codec = grad[: len(grad) // 16 * 16].contiguous(), StrongestGradients(16, sent, dtype)
    buffer = codec.encode(grad)
    back = codec.decode(buffer)
    monkeypatch.setattr(codecs, "compiled", lambda tensor: False)
    assert torch.equal(codec.encode(grad), buffer)
    assert torch.equal(codec.decode(buffer), back)


@pytest.mark.parametrize(
    ("width", "sent", "dtype", "expected"),
    [
        (16, 4, "bfloat16", 10),
        (16, 16, "float32", 64),
        (16, 16, "float16", 32),
        (32, 8, "float32", 36),
        (8, 2, "bfloat16", 5),
    ],
)
def test_bytes_of_a_chunk(width, sent, dtype, expected):
    assert StrongestGradients(width, sent, dtype).bytes_of(width) == expected


@pytest.mark.parametrize(("dims", "width"), [(4, 2), (65_535, 2), (65_536, 3), (262_144, 3), (MAX_DIMS, 3)])
def test_columns_and_the_code_of_a_free_slot_arrive_exactly(path, dims, width):
    codec = Columns(dims)
    columns = torch.randint(0, dims, (999,), generator=torch.Generator().manual_seed(0)).float()
    columns[:3] = torch.tensor([0.0, dims - 1.0, dims])
    buffer = codec.encode(columns.view(-1, 3))
    assert len(buffer) == codec.calc_quantized_size(999) == 999 * width == codec.bytes_of(999)
    assert torch.equal(codec.decode(buffer), columns)


def test_values_as_halves_saturate():
    values = torch.tensor([1.0, 1 / 3, -1e6, 70_000.0, 1e-9, torch.nan])
    got = HalfValues().decode(HalfValues().encode(values))
    expected = torch.tensor([1.0, float(torch.tensor(1 / 3).half()), -65504.0, 65504.0, 0.0, torch.nan])
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_settings_name_the_codecs():
    forward, backward = value_codecs(WireSettings(), 16)
    assert type(forward) is Codec and backward.exact
    forward, backward = value_codecs(WireSettings(values="float16", gradients="bfloat16", gradient_slots=4), 16)
    assert type(forward) is HalfValues and not backward.exact and backward.chunk_bytes == 10
    # TorchRec's planner reads the type as a property of either direction
    (pair,) = registry(forward, backward).values()
    assert (pair.forward.quantized_dtype, pair.backward.quantized_dtype) == (torch.float16, torch.uint8)
