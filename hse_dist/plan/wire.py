"""Bytes that workers send each other in a step, by kind, and how long a step takes.

In: a `Shape`. Out: bytes of all workers together by the kinds of the run's own meter (tests/plan holds them to it
within 5 %), and seconds, each with its formula. Seconds on a CPU follow from rates that were measured on one machine;
those on a GPU are a bound by memory traffic: small steps wait for their kernels' launches instead (5 241 candidates of
16 live entries and 128 users took 16 ms on an H200, of which the bound is .15 ms; before ids came in bags).
"""

from __future__ import annotations

from dataclasses import dataclass

from hse_dist.plan.shape import Shape
from hse_dist.plan.sizes import sightings
from hse_dist.tables.codecs import Columns, value_codecs
from hse_dist.tables.route import IDS_A_BAG

ROUNDS, HISTOGRAM = 9, 16 * 1024
"""Messages of a rank to the server in a rewire: three rounds each to drop, grow and restore."""
SLOT_SECONDS = 53e-9
"""Of lookup, gradients back and update, a slot and core: `benchmark scale`, 14 ms for 8 192 chunks of 32."""
FLOPS = 20e9
"""Of the compiled sweep, a core: `benchmark scale`, 39 ms for 6 · 262 144 entries · 512 users."""
DEVICE_TRAFFIC = 0.9e12
"""Bytes a second of a GPU's memory: the planner's own figure for an A100, taken as a bound for all."""


@dataclass(frozen=True)
class Figure:
    """A number with its formula."""

    value: float
    formula: str


def wire_bytes(shape: Shape) -> dict[str, Figure]:
    """Bytes a step of all workers together, by kind; rewires spread over their interval."""
    width, candidates = shape.chunk_width, shape.candidates
    chunks = candidates * shape.chunks_a_row
    away = shape.workers * shape.remote
    id_bytes = 4 if shape.chunks < 2**31 else 8
    values, gradients = value_codecs(shape.wire, width)
    value_bytes, column_bytes = values.quantized_dtype.itemsize, Columns(shape.dims).width
    gain_rows = candidates if shape.gains else 0.0
    row_ids = (4 if shape.items < 2**31 else 8) * gain_rows
    names = f"{shape.workers - 1} · n, n = {chunks:.4g} chunks of C = {candidates:.4g}"
    lengths, bag = 0.0, max(IDS_A_BAG[shape.device], shape.workers)
    if shape.device == "cuda":  # every worker sends the lengths of its bags to all others
        lengths = (id_bytes * chunks + row_ids) / bag * shape.workers
    text = f" · (1 + {shape.workers} / {bag})" if lengths else ""
    found = {
        "ids": Figure(away * (id_bytes * chunks + row_ids + lengths), f"{id_bytes} · {names}{text}"),
        "columns": Figure(away * column_bytes * width * chunks, f"{column_bytes} · w · {names}"),
        "values": Figure(away * value_bytes * width * chunks, f"{value_bytes} · w · {names}"),
        "gains": Figure(away * 32 * gain_rows, f"32 · {shape.workers - 1} · C"),
        "gradients": Figure(away * gradients.chunk_bytes * chunks, f"{gradients.chunk_bytes} · {names}"),
    }  # fmt: skip
    asked = away * sightings(shape) + (shape.workers - 1) * ROUNDS * HISTOGRAM
    text = f"({shape.workers - 1} · window · C · (20 · explore + 8) + {ROUNDS} · 16 KiB · {shape.workers - 1})"
    return {**found, "rewire": Figure(asked / shape.interval, f"{text} / {shape.interval} steps")}


def seconds(shape: Shape) -> dict[str, Figure]:
    """Seconds of a step: arithmetic of a worker, and what the busiest worker sends or receives."""
    slots = shape.candidates * shape.chunks_a_row * shape.chunk_width
    entries = shape.candidates * shape.live
    sent = {kind: figure.value for kind, figure in wire_bytes(shape).items()}
    # ids travel while the step before computes
    whole = sum(sent.values()) - sent["ids"]
    share = max(shape.busiest, 1 / shape.workers) if shape.workers > 1 else 0.0
    found = {"wire": Figure(whole * share / shape.network, f"bytes but ids · {share:.2g} (busiest) / network")}
    if shape.device == "cuda":
        traffic = 12 * entries * shape.users + 40 * slots
        found["arithmetic"] = Figure(traffic / DEVICE_TRAFFIC, "(12 · C · k · B + 40 · s) / .9 TB/s, not measured")
    else:
        work = SLOT_SECONDS * slots + 6 * entries * shape.users / FLOPS
        found["arithmetic"] = Figure(work / shape.threads, "(53 ns · s + 6 · C · k · B / 20 Gflop/s) / threads")
    return found
