"""The plan as a person reads it and as a script does.

In: a `Shape`, perhaps interactions a day. Out: tables on standard error, and one JSON-able object.
"""

from __future__ import annotations

from typing import Any

from hse_dist.plan.shape import Shape
from hse_dist.plan.sizes import (
    RESERVE,
    Part,
    checkpoint_bytes,
    checkpoint_seconds,
    fits,
    parts,
    smallest_workers,
    total,
    total_of_host,
)
from hse_dist.plan.units import as_bytes
from hse_dist.plan.wire import Figure, seconds, wire_bytes
from hse_dist.screen import show_texts

DAY = 86_400.0
HELD = {
    "always": "always",
    "step": "in a step",
    "rewire": "in a rewire",
    "host": "on the host",
    "host in a rewire": "on the host, in a rewire",
}


def plan(shape: Shape, interactions_a_day: int | None = None) -> dict[str, Any]:
    """Show the plan; the keys `bytes_per_worker`, `fits`, `smallest_workers`, `wire_bytes_per_step` and what they are
    made of."""
    from hse_dist.plan.planner import ask_planner

    found, sent, time = parts(shape), wire_bytes(shape), seconds(shape)
    most, answer, step = total(found), ask_planner(shape), sum(figure.value for figure in time.values())
    smallest = smallest_workers(shape)
    result: dict[str, Any] = {
        "bytes_per_worker": most,
        "memory_per_worker": shape.memory,
        "host_bytes_per_worker": total_of_host(found),
        "fits": fits(shape),
        "smallest_workers": smallest,
        "wire_bytes_per_step": round(sum(figure.value for figure in sent.values())),
        "seconds_per_step": step,
        "bytes": {part.name: part.bytes for part in found},
        "wire_bytes": {kind: round(figure.value) for kind, figure in sent.items()},
        "seconds": {name: figure.value for name, figure in time.items()},
        "checkpoint_bytes": checkpoint_bytes(shape),
        "checkpoint_seconds": checkpoint_seconds(shape),
        "candidates": shape.candidates,
        "busiest_share": shape.busiest,
        "planner_bytes_per_worker": answer.bytes_per_worker,
        "planner_milliseconds": answer.milliseconds,
        "planner_refusal": answer.refusal,
    }
    if interactions_a_day is not None:
        steps = interactions_a_day / shape.history / (shape.users * shape.workers)
        result |= {"steps_per_day": steps, "hours_per_day_of_data": steps * step / 3600, "keeps_up": steps * step < DAY}
    _show(shape, result, found, sent, time)
    return result


def _show(
    shape: Shape, result: dict[str, Any], found: list[Part], sent: dict[str, Figure], time: dict[str, Figure]
) -> None:
    rows = [(part.name, HELD[part.when], as_bytes(part.bytes), part.formula) for part in found]
    what = f"{shape.items:.4g} rows, {shape.live} of {shape.dims} columns"
    title = f"A worker of {shape.workers} ({shape.device}): {what}"
    show_texts(title, ("bytes", "held", "", "formula"), rows)
    kinds = [(kind, as_bytes(figure.value), figure.formula) for kind, figure in sent.items()]
    show_texts("Sent in a step by all workers together", ("kind", "bytes", "formula"), kinds)
    steps = [(name, f"{1e3 * figure.value:.3g} ms", figure.formula) for name, figure in time.items()]
    show_texts("A step", ("part", "time", "formula"), steps)
    show_texts("In short", ("", ""), list(_words(shape, result)))


def _words(shape: Shape, result: dict[str, Any]) -> list[tuple[str, str]]:
    """The answers, in words."""
    memory, smallest = as_bytes(shape.memory), result["smallest_workers"]
    if shape.device == "cuda":
        memory += f", {as_bytes(result['host_bytes_per_worker'])} of {as_bytes(shape.host_memory)} of the host"
    whether = "fits" if result["fits"] else "does not fit"
    lines = [
        ("memory", f"{as_bytes(result['bytes_per_worker'])} of {memory}, {RESERVE:.0%} left alone: {whether}"),
        ("smallest cluster", f"{smallest} workers" if smallest else "none: offsets and activations alone are too much"),
        ("wire", f"{as_bytes(result['wire_bytes_per_step'])} a step, {result['busiest_share']:.0%} of it for worker 0"),
        (
            "checkpoint",
            f"{as_bytes(result['checkpoint_bytes'])} (tables), {result['checkpoint_seconds']:.3g} s at "
            f"{as_bytes(shape.disk)}/s a worker",
        ),
    ]
    if result["planner_refusal"]:
        lines.append(("TorchRec's planner", f"refuses: {result['planner_refusal']}"))
    else:
        shards, own = as_bytes(result["planner_bytes_per_worker"]), result["planner_milliseconds"]
        lines.append(("TorchRec's planner", f"shards of {shards} a worker, {own:.3g} ms of lookups and updates"))
    if "keeps_up" in result:
        hours = result["hours_per_day_of_data"]
        lines.append(("a day's data", f"{result['steps_per_day']:,.0f} steps, {hours:.3g} hours"))
    return lines
