"""Which node runs what: for the log, and for whoever looks at a run from outside.

In: where each rank and the SparsityServer run. Out: `placement.json` in the run folder, written anew by every worker
group when it starts, and the same in words. Nothing is decided by it: Ray places workers (`cluster.placement`), and the
SparsityServer runs beside the driver.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from hse_dist.files import read_json, write_json

Placement = dict[str, Any]
"""`ranks`: `node` (its address) and `pid` of each, in order; `server`: the same of the SparsityServer."""
Where = tuple[str, int]
"""A node's address and a process id on it."""


def write_placement(path: Path, ranks: list[Where], server: Where) -> Placement:
    """Write it down, whole or not at all."""
    placement = {"ranks": [_place(where) for where in ranks], "server": _place(server)}
    write_json(path, placement)
    return placement


def _place(where: Where) -> dict[str, Any]:
    node, pid = where
    return {"node": node, "pid": pid}


def read_placement(path: Path) -> Placement | None:
    """What the newest worker group wrote down; None before the first one has."""
    return read_json(path, "placement of the run") if path.exists() else None


def by_node(placement: Placement) -> dict[str, list[str]]:
    """What runs on each node that runs something, in words, nodes in the order of their ranks."""
    found: dict[str, list[str]] = defaultdict(list)
    for rank, place in enumerate(placement["ranks"]):
        found[place["node"]].append(f"rank {rank}")
    found[placement["server"]["node"]].append("SparsityServer")
    return dict(found)


def describe(placement: Placement) -> str:
    """The same as one line."""
    return "; ".join(f"{node}: {', '.join(what)}" for node, what in by_node(placement).items())
