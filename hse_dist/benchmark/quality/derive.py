"""From single measurements to tables: pure functions of records.

In: records, one a cell that was measured: `data`, `method`, `budget` (None: the method's own size), `bytes_per_item` as
measured, `seed`, `ndcg@100`, `recall@20`, `seconds`. Out: rows for people and for JSON.

Means of different seeds cannot be compared: on small data seeds differ more than methods do. So two methods are
compared over the seeds that both have, and the derived tables take, of each data set, the seeds that all its places
have (a place: a method at a budget).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

Record = Mapping[str, Any]
Rows = list[dict[str, Any]]
Place = tuple[str, str, int | None]
"""Data set, method, budget."""
Point = tuple[float, float]
"""Bytes an item and nDCG@100."""

METRIC = "ndcg@100"
SLACK = 0.01
"""How far from the best still is as good."""


def places(records: Iterable[Record]) -> dict[Place, dict[int, Record]]:
    """The records of each place by seed."""
    found: dict[Place, dict[int, Record]] = {}
    for record in records:
        found.setdefault((record["data"], record["method"], record["budget"]), {})[record["seed"]] = record
    return found


def shared_seeds(records: Iterable[Record], data: str) -> list[int]:
    """The seeds that every place of a data set has."""
    sets = [set(by_seed) for (name, _, _), by_seed in places(records).items() if name == data]
    return sorted(set.intersection(*sets)) if sets else []


def even(records: Sequence[Record]) -> list[Record]:
    """The records of the seeds that every place of their data set has: means of these can be compared."""
    seeds = {data: shared_seeds(records, data) for data in {record["data"] for record in records}}
    return [record for record in records if record["seed"] in seeds[record["data"]]]


def uneven(records: Sequence[Record]) -> dict[str, list[int]]:
    """Data sets with seeds that not every place has → those that every one has."""
    names = dict.fromkeys(record["data"] for record in records)
    shared = {data: shared_seeds(records, data) for data in names}
    return {
        data: shared[data] for data in names if {r["seed"] for r in records if r["data"] == data} != {*shared[data]}
    }


def mean(by_seed: Mapping[int, Record], metric: str = METRIC, seeds: Iterable[int] | None = None) -> float:
    """Over the seeds given, or all."""
    return fmean(by_seed[seed][metric] for seed in (by_seed if seeds is None else seeds))


def quality_table(records: Sequence[Record], ours: str, own: Iterable[str]) -> Rows:
    """A row a place: by data set as they come, by bytes, the best first.

    Args:
        ours: the method that others are compared with, at equal budgets and over the seeds of both.
        own: methods that are variants of ours; they are not marked.
    """
    found = places(records)
    order = list(dict.fromkeys(record["data"] for record in records))
    rows: Rows = []
    for (data, method, budget), by_seed in found.items():
        values = [record[METRIC] for record in by_seed.values()]
        several = len(values) > 1
        gain = _gain(found.get((data, ours, budget), {}), by_seed) if method != ours else None
        rows.append(
            {
                "data": data,
                "bytes an item": round(mean(by_seed, "bytes_per_item")),
                "method": method,
                "nDCG@100": fmean(values),
                "lowest": min(values) if several else None,
                "highest": max(values) if several else None,
                "Recall@20": mean(by_seed, "recall@20"),
                "seconds": mean(by_seed, "seconds"),
                "seeds": len(values),
                "against ours, %": gain,
                "mark": "above ours" if gain is not None and gain > 0 and method not in own else "",
                "budget": budget,
            }
        )
    rows.sort(key=lambda row: (order.index(row["data"]), row["budget"] or math.inf, -row["nDCG@100"]))
    return rows


def _gain(ours: Mapping[int, Record], theirs: Mapping[int, Record]) -> float | None:
    """How far theirs is above ours, in per cent of ours, over the seeds of both."""
    seeds = sorted(ours.keys() & theirs.keys())
    return 100 * (mean(theirs, seeds=seeds) / mean(ours, seeds=seeds) - 1) if seeds else None


def defeats(records: Sequence[Record], ours: str, own: Iterable[str]) -> Rows:
    """Where `ours` is below a baseline of the same budget: `data`, `budget`, `method`, both means, `seeds` compared."""
    found, rows = places(records), []
    for (data, method, budget), theirs in found.items():
        mine = found.get((data, ours, budget), {})
        seeds = sorted(mine.keys() & theirs.keys())
        if budget is None or method in own or not seeds:
            continue
        a, b = mean(mine, seeds=seeds), mean(theirs, seeds=seeds)
        if a < b:
            rows.append({"data": data, "budget": budget, "method": method, "ours": a, "theirs": b, "seeds": seeds})
    return rows


def curves(records: Sequence[Record], data: str) -> dict[str, list[Point]]:
    """Method → its points by rising bytes, over the seeds that all places of the data set have."""
    lines: dict[str, list[Point]] = {}
    for (name, method, _), by_seed in places(even(records)).items():
        if name == data:
            lines.setdefault(method, []).append((mean(by_seed, "bytes_per_item"), mean(by_seed)))
    return {method: sorted(points) for method, points in lines.items()}


def bytes_to_reach(points: Sequence[Point], target: float) -> float | None:
    """The least bytes at which a curve has the target; None if it never has.

    Between two measured points the curve is a line over log bytes; below the smallest it is not known, so that the
    smallest is the answer where it has the target already.

    Args:
        points: by rising bytes.
    """
    before: Point | None = None
    for size, value in points:
        if value >= target:
            if before is None:
                return size
            share = (target - before[1]) / (value - before[1])
            return float(before[0] * (size / before[0]) ** share)
        before = size, value
    return None


def bytes_needed(records: Sequence[Record], slack: float = SLACK) -> Rows:
    """Bytes an item within `slack` of the best of all methods on a data set, and of the method's own best."""
    rows = []
    for data in dict.fromkeys(record["data"] for record in records):
        lines = curves(records, data)
        best = max((value for points in lines.values() for _, value in points), default=math.nan)
        for method, points in lines.items():
            own = max(value for _, value in points)
            rows.append(
                {
                    "data": data,
                    "method": method,
                    "within 1 % of the best": bytes_to_reach(points, (1 - slack) * best),
                    "of its own best": bytes_to_reach(points, (1 - slack) * own),
                    "its best nDCG@100": own,
                    "best of all": best,
                    "seeds": len(shared_seeds(records, data)),
                }
            )
    return rows


def coordination(records: Sequence[Record], kinds: Mapping[str, str]) -> Rows:
    """What coordination is worth: nDCG@100 of each kind of budget, where at least two were measured.

    Args:
        kinds: kind of budget → the method that has it; the first is compared with the best of the others.
    """
    found, rows = places(records), []
    for data, budget in dict.fromkeys((record["data"], record["budget"]) for record in records):
        there = {kind: found.get((data, method, budget), {}) for kind, method in kinds.items()}
        some = {kind: by_seed for kind, by_seed in there.items() if by_seed}
        seeds = sorted(set.intersection(*map(set, some.values()))) if len(some) > 1 else []
        if budget is None or not seeds:
            continue
        values = {kind: mean(by_seed, seeds=seeds) for kind, by_seed in some.items()}
        row: dict[str, Any] = {"data": data, "bytes an item": budget}
        row |= {kind: values.get(kind) for kind in kinds}
        first, *others = kinds
        rest = [values[kind] for kind in others if kind in values]
        row[f"{first} gains, %"] = 100 * (values[first] / max(rest) - 1) if first in values and rest else None
        row |= {"best": max(values, key=lambda kind: values[kind]), "seeds": len(seeds)}
        # a start may have fewer entries of some rows than a budget a row allows them: not all take their bytes
        sizes = {kind: mean(by_seed, "bytes_per_item", seeds) for kind, by_seed in some.items()}
        rows.append({**row, **{f"bytes of {kind}": sizes.get(kind) for kind in kinds}})
    return rows


def best_kind(rows: Sequence[Mapping[str, Any]], kinds: Iterable[str]) -> str | None:
    """The kind of budget with the best mean over all rows that have every kind, each in parts of its row's best."""
    kinds = list(kinds)
    full = [row for row in rows if all(row[kind] is not None for kind in kinds)]
    if not full:
        return None
    return max(kinds, key=lambda kind: fmean(row[kind] / max(row[other] for other in kinds) for row in full))


def shares(records: Sequence[Record], ours: str, full: str, targets: Mapping[tuple[str, int], float]) -> Rows:
    """`ours` in parts of the full-size method `full`, over the seeds of both; `target` None where there is none."""
    found, rows = places(records), []
    for (data, method, budget), mine in found.items():
        theirs = found.get((data, full, None), {})
        seeds = sorted(mine.keys() & theirs.keys())
        if method != ours or budget is None or not seeds:
            continue
        a, b = mean(mine, seeds=seeds), mean(theirs, seeds=seeds)
        target = targets.get((data, budget))
        row = {"data": data, "bytes an item": budget, ours: a, full: b, "share": a / b, "target": target}
        rows.append({**row, "seeds": len(seeds), "mark": "missed" if target is not None and a / b < target else ""})
    order = list(dict.fromkeys(record["data"] for record in records))
    return sorted(rows, key=lambda row: (order.index(row["data"]), row["bytes an item"]))
