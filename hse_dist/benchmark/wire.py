"""`benchmark wire`: what ranks send each other in a step, packed rows beside dense ones, and what the codecs cost.

In: the shape of a step. Out: bytes that all ranks together send to others in a step, by kind, as the run's own byte
meter counts them: packed rows as they are, with gradients cut to the strongest r = k / 4 in bfloat16, and with half
values besides; a dense table of the same D, and one of the same bytes. Every one of them trains real steps with the
same batches on 2 and 4 ranks over gloo.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from hse_dist.benchmark.report import Chart, Report, spread
from hse_dist.benchmark.step import make_batch, packed_table, step_of
from hse_dist.benchmark.worlds import World
from hse_dist.config import TrainSettings, WireSettings
from hse_dist.data.batch import Batch
from hse_dist.ranks import KINDS, Ranks
from hse_dist.tables import codecs
from hse_dist.tables.codecs import StrongestGradients
from hse_dist.tables.sharded import DenseTable

SIZES = (2, 4)
DENSE_ROWS = 2**16
"""Most rows of the dense table of D columns: its bytes on the wire do not depend on rows that are not looked up."""
TARGETS = {"bytes_vs_dense_equal_dim": 1 / 100, "bytes_vs_dense_equal_bytes": 1 / 2, "codec_milliseconds": 40.0}
CODEC_CHUNKS = 200_000
STRONGEST = "packed, strongest quarter"
WHOLE = "packed, all gradients"


class Rank:
    """One rank; made and called on all ranks of a world together."""

    def __init__(self, ranks: Ranks, shape: dict[str, int]) -> None:
        self.ranks, self.shape = ranks, shape
        sizes = (shape["candidates"], shape["users"], shape["history"], shape["rows"])
        self.batch = make_batch(*sizes, ranks.device, seed=ranks.rank)

    def measure(self, wire: WireSettings | None, dims: int, steps: int) -> tuple[dict[str, float], list[float]]:
        """Bytes of a step by kind, and seconds of each step; `wire` None: dense rows of `dims`."""
        step = step_of(self._packed(wire, dims), self.batch) if wire is not None else self._dense(dims)
        step()
        self.ranks.barrier()
        before, seconds = dict(self.ranks.meter.sent), []
        for _ in range(steps):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        sent = self.ranks.meter.since(before)
        return {kind: count / steps for kind, count in sent.items()}, seconds

    def _packed(self, wire: WireSettings, dims: int) -> Any:
        shape = self.shape
        return packed_table(
            shape["rows"], dims, shape["live"], shape["chunk_width"], self.ranks, TrainSettings(), wire=wire
        )

    def _dense(self, dims: int) -> Any:
        rows = min(self.shape["rows"], max(DENSE_ROWS, 2 * self.shape["candidates"]))
        table = DenseTable(rows, dims, self.ranks, TrainSettings(), "row_wise")
        table.local_values().normal_()
        candidates = self.batch.candidates
        spread_out = torch.linspace(0, rows - 1, len(candidates), device=candidates.device).long()
        return step_of(table, Batch(spread_out, self.batch.offsets, self.batch.positions))


def benchmark_wire(
    *,
    candidates: int = 8192,
    live: int = 32,
    dims: int = 4096,
    users: int = 128,
    history: int = 60,
    rows: int = 200_000,
    chunk_width: int = 16,
    steps: int = 3,
) -> Report:
    """Bytes of a step on 2 and 4 ranks.

    Args:
        candidates, users, history: of each rank's batch. rows: of the tables. chunk_width: w; r is w / 4.

    Returns:
        figures `bytes_vs_dense_equal_dim`, `bytes_vs_dense_equal_bytes`, `gradient_bytes_vs_dense_equal_bytes` (all on
        2 ranks, the strongest quarter of the gradients in bfloat16) and `codec_milliseconds`.
    """
    shape = {"candidates": candidates, "live": live, "dims": dims, "users": users, "history": history, "rows": rows}
    shape |= {"chunk_width": chunk_width, "steps": steps}
    quarter: dict[str, Any] = {"gradients": "bfloat16", "gradient_slots": chunk_width // 4}
    tables: dict[str, tuple[WireSettings | None, int]] = {
        WHOLE: (WireSettings(), dims),
        STRONGEST: (WireSettings(**quarter), dims),
        "the same, half values": (WireSettings(values="float16", **quarter), dims),
        f"dense, D = {2 * live} (same bytes)": (None, 2 * live),
        f"dense, D = {dims}": (None, dims),
    }
    found: dict[tuple[str, int], tuple[dict[str, float], list[float]]] = {}
    for size in SIZES:
        with World(Rank, size, shape) as world:
            for name, (wire, columns) in tables.items():
                answers = world.call("measure", wire, columns, steps)
                sent = {kind: sum(answer[0][kind] for answer in answers) for kind in KINDS}
                found[name, size] = sent, [max(times) for times in zip(*(a[1] for a in answers), strict=True)]
    return _report(found, list(tables), codec_times(chunk_width), shape)


def codec_times(width: int, repeats: int = 7) -> dict[str, list[float]]:
    """Milliseconds to encode and decode 200 000 chunks on one core: compiled, and the plain path."""
    codec = StrongestGradients(width, width // 4, "bfloat16")
    grad = torch.randn(CODEC_CHUNKS, width, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    compiled = codecs.compiled(grad)
    times: dict[str, list[float]] = {"compiled": []} if compiled else {}
    times["plain"] = []
    try:
        for _ in range(repeats):
            for name in times:
                began = time.perf_counter()
                codec.decode(codec.encode(grad)) if name == "compiled" else codec.plain_way(grad)
                times[name].append(1e3 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return times


def _report(
    found: dict[tuple[str, int], tuple[dict[str, float], list[float]]],
    names: list[str],
    codec: dict[str, list[float]],
    shape: dict[str, int],
) -> Report:
    total = {key: sum(sent.values()) for key, (sent, _) in found.items()}
    *_, equal_bytes, equal_dim = names
    ours, bytes_, dim = (found[name, 2][0]["gradients"] for name in (STRONGEST, equal_bytes, equal_dim))
    figures: dict[str, float | int | str] = {
        "bytes_vs_dense_equal_dim": total[STRONGEST, 2] / total[equal_dim, 2],
        "bytes_vs_dense_equal_dim_all_gradients": total[WHOLE, 2] / total[equal_dim, 2],
        "bytes_vs_dense_equal_bytes": total[STRONGEST, 2] / total[equal_bytes, 2],
        "gradient_bytes_vs_dense_equal_bytes": ours / bytes_,
        "gradient_bytes_vs_dense_equal_dim": ours / dim,
        "gradient_bytes_vs_all_gradients": ours / found[WHOLE, 2][0]["gradients"],
        "codec_milliseconds": spread(next(iter(codec.values())))["median"],
    }
    rows = [
        {
            "table": name,
            "ranks": size,
            "KB a step": sum(sent.values()) / 1e3,
            **{f"{kind}, KB": sent[kind] / 1e3 for kind in ("ids", "columns", "values", "gradients")},
            "ms a step": spread([1e3 * second for second in seconds]),
        }
        for (name, size), (sent, seconds) in found.items()
    ]
    notes = [
        f"encode and decode of {CODEC_CHUNKS} chunks of {shape['chunk_width']} on one core, {name}: "
        f"{spread(times)['median']:.1f} ms ({min(times):.1f} – {max(times):.1f})"
        for name, times in codec.items()
    ]
    notes += [
        f"{name} is {figures[name]:.3g}; the target is {most:g}"
        for name, most in TARGETS.items()
        if float(figures[name]) > most
    ]
    notes.append("milliseconds are of ranks that share this machine's cores; bytes do not depend on that")
    return Report(
        kind="wire",
        figures=figures,
        rows=rows,
        shape=dict(shape),
        notes=notes,
        chart=Chart(
            title="What ranks send each other in a step",
            y_label="KB, all ranks together (log)",
            x_label="",
            series={f"{size} ranks": [total[name, size] / 1e3 for name in names] for size in SIZES},
            x=names,
            kind="bars",
            log_y=True,
        ),
    )
