"""Bytes of a worker, part by part, each with its formula.

In: a `Shape`. Out: `Part`s, and their sum at the moment when it is largest. What a table keeps is arithmetic; what a
step and a rewire take for a while was fitted to what ranks of real runs took (tests/plan holds the sum to that within
15 %, on the CPU; what a GPU takes was fitted to eight shapes on one, in blocks of 128 users, which are larger now). K
chunks, R rows, S = K · w slots of a worker; C candidates of a batch, n chunks and s = n · w slots of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hse_dist.config import GrowSettings
from hse_dist.model.fused import CACHED_COLUMNS
from hse_dist.model.operators import VECTOR_BYTES, users_on_gpu
from hse_dist.plan.shape import Shape
from hse_dist.sparsity.budget import BLOCK
from hse_dist.sparsity.slot_keys import BLOCK_SLOTS, KEPT_SLOTS
from hse_dist.tables.codecs import value_codecs

PROCESS = 700_000_000
"""Of Python, torch, fbgemm, TorchRec and Ray in a worker, before it has a table; a CUDA context was not measured."""
SEARCHED = 1.35
"""What the search for positions takes on a GPU, as a multiple of its blocks of gradients."""
NOT_STORED = ("offsets", "residuals", "cache")
RESERVE = 0.15
"""Share of the memory that is left alone, as in the planner of the tables."""
When = Literal["always", "step", "rewire", "host", "host in a rewire"]


@dataclass(frozen=True)
class Part:
    """Bytes of one thing.

    Attributes:
        when: it is held: always; in a step, or in a rewire, which do not meet; or by a GPU's machine, always or in a
            rewire.
        formula: with the numbers that were put in.
    """

    name: str
    bytes: int
    formula: str
    when: When = "always"


def parts(shape: Shape) -> list[Part]:
    """All parts, in a fixed order."""
    return [*table_parts(shape), *step_parts(shape), *rewire_parts(shape), *process_parts(shape)]


def table_parts(shape: Shape) -> list[Part]:
    """What a worker keeps of the table."""
    width, chunks = shape.chunk_width, shape.chunks_a_worker
    numbers, slots, rows = f"{chunks:.4g} · {width}", chunks * width, shape.rows_a_worker if shape.gains else 0
    a_slot = shape.optimizer == "adagrad"
    state = 4 * (slots + 4 * rows) if a_slot else 4 * (chunks + rows)
    terms = f"4 · K · w + 16 · R = 4 · {numbers} + 16 · " if a_slot else f"4 · (K + R) = 4 · {chunks:.4g} + 4 · "
    where: When = "always" if shape.kernel == "fused" else "host"
    found = [
        Part("values", 4 * slots, f"4 · K · w = 4 · {numbers}", where),
        Part("columns", 4 * slots, f"4 · K · w = 4 · {numbers}", where),
        Part("offsets", 8 * (shape.items + 1), f"8 · items = 8 · {shape.items:.4g}, on every worker"),
        Part("gains", 16 * rows, f"16 · R = 16 · {rows:.4g}", where),
        # of a state a chunk and row fbgemm leaves all on the GPU
        Part("optimizer", state, f"{terms}{rows:.4g}", where if a_slot else "always"),
    ]
    if shape.kernel == "fused_uvm_caching":
        share, lines = shape.cache_load_factor, 2 * chunks + rows
        held = share * (8 * slots + 16 * rows) + (4 + 16 * share) * lines
        text = f"f · (8 · K · w + 16 · R) + (4 + 16 · f) · (2 · K + R), f = {share:g}"
        found.append(Part("cache", round(held), text))
    _, gradients = value_codecs(shape.wire, width)
    if shape.workers > 1 and shape.wire.feedback and not gradients.exact:
        kept = min(shape.chunks, shape.wire.feedback_mb * 2**20 // (8 * width))
        text = f"8 · w · min(chunks, feedback_mb / 8 w) = 8 · {width} · {kept:.4g}"
        found.append(Part("residuals", 8 * width * kept, text))
    return found


def step_parts(shape: Shape) -> list[Part]:
    """What a step takes for a while, and what it gathers for growth."""
    candidates = shape.candidates
    slots = candidates * shape.chunks_a_row * shape.chunk_width
    entries = candidates * shape.live
    columns = shape.dims if shape.dims <= shape.compact_above else min(shape.dims, entries + 1)
    if shape.device == "cuda":
        # the plain path, blocks of users: vectors and scores with their gradients
        users = min(users_on_gpu(round(columns + candidates)), shape.users)
        space, text = VECTOR_BYTES * (columns + candidates) * users, f"{VECTOR_BYTES} · (D + C) · {users}"
    else:
        users = 64 if columns <= CACHED_COLUMNS else 16
        space = 4 * shape.threads * (2 * columns + candidates) * users + 8 * columns
        text = f"4 · threads · (2 D + C) · {users}"
    a_slot = 70 if shape.device == "cuda" else 56
    lookup = a_slot * slots + 34 * entries
    collected = min(shape.collect_users, shape.users)
    kept = 4 * (3 * columns + candidates) * collected  # the search turns one matrix around
    searched = f"4 · (3 D + C) · {collected}"
    if shape.device == "cuda":  # and makes dense gradients, in blocks
        kept += SEARCHED * min(8 * candidates * columns, GrowSettings().memory_mb * 2**20)
        searched += f" + {SEARCHED} · min(8 · C · D, memory_mb)"
    seen, known = sightings(shape), f"s = {slots:.4g}, C = {candidates:.4g}"
    return [
        Part("activations", round(lookup + space), f"{a_slot} · s + 34 · C · k + {text}; {known}", "step"),
        Part(
            "exploration",
            round(kept + seen),
            f"{searched} + window · C · (20 · explore + 8); D in use {columns:.4g}",
            "step",
        ),
    ]  # fmt: skip


def sightings(shape: Shape) -> float:
    """Bytes of what growth has seen since the last rewire."""
    return shape.window * shape.candidates * (20 * shape.explore + 8)


def rewire_parts(shape: Shape) -> list[Part]:
    """What a rewire takes for a while; on the host, wherever the table is."""
    slots, rows = shape.chunks_a_worker * shape.chunk_width, shape.rows_a_worker
    block, counted = min(slots, BLOCK_SLOTS), min(slots, BLOCK)
    kept = slots <= KEPT_SLOTS
    keys = 4 * slots if kept else slots // 8 + 4 * block
    copies = 16 * slots if shape.optimizer == "adagrad" or shape.device == "cuda" else 0
    seen = shape.window * shape.candidates * shape.explore
    # the journal's first count of what is live, or the keys with what a pass over them takes, or a later count
    most = max(60 * counted, keys + 5 * block, keys + 45 * counted)
    what = "4 · S" if kept else "S / 8 + 4 · b"
    text = (
        f"max(60 · c, {what} + 5 · b, {what} + 45 · c) + max({'16 · S, ' if copies else ''}100 · seen) + 65 · R; "
        f"S = {slots:.4g}, b = {block:.4g}, c = {counted:.4g}, seen = window · C · explore = {seen:.4g}"
    )
    taken = round(most + max(copies, 100 * seen) + 65 * rows)
    return [Part("rewire", taken, text, "host in a rewire" if shape.device == "cuda" else "rewire")]


def process_parts(shape: Shape) -> list[Part]:
    """What a worker takes before it has a table."""
    if shape.device == "cuda":
        return [Part("process", PROCESS, "imports; the device's context was not measured", "host")]
    return [Part("process", PROCESS, "imports, measured")]


def total(found: Sequence[Part]) -> int:
    """Bytes on the device at the moment when they are most."""
    held = {when: sum(part.bytes for part in found if part.when == when) for when in ("always", "step", "rewire")}
    return held["always"] + max(held["step"], held["rewire"])


def total_of_host(found: Sequence[Part]) -> int:
    """Bytes of a worker in the memory of a GPU's machine, when they are most; 0 where the table lies on CPUs."""
    return sum(part.bytes for part in found if part.when in ("host", "host in a rewire"))


def fits(shape: Shape) -> bool:
    """Whether a worker's memory suffices, with the reserve."""
    found = parts(shape)
    in_host = shape.device == "cpu" or total_of_host(found) <= (1 - RESERVE) * shape.host_memory
    return total(found) <= (1 - RESERVE) * shape.memory and in_host


def smallest_workers(shape: Shape, most: int = 2**20) -> int | None:
    """The least number of workers whose memory suffices; None where no number does: offsets are on every worker, and
    activations do not get less."""
    high = 1
    while not fits(shape.on(high)):
        high *= 2
        if high > most:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(shape.on(middle)) else (middle, high)
    return high


def checkpoint_bytes(shape: Shape) -> int:
    """Of one checkpoint, of all workers: the table but for offsets, which are four bytes a row there, once; and but for
    what ranks keep for themselves (residuals, growth scores inside a window)."""
    stored = sum(part.bytes for part in table_parts(shape) if part.name not in NOT_STORED)
    return stored * shape.workers + 4 * shape.items


def checkpoint_seconds(shape: Shape) -> float:
    """All workers write at once."""
    return math.ceil(checkpoint_bytes(shape) / shape.workers) / shape.disk
