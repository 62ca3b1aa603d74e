"""The SparsityServer: decides for all ranks which entries are dropped, grown and restored.

In: one message of every rank, in rank order. Out: one reply for all of them, or for each. It holds no table, only
counts: payloads are kilobytes whatever the tables' size. It is pure: no Ray, no clock, no files; the Ray actor
(`actor.py`) and the process group (`client.py`) are two ways to bring messages here.

The live count is exact, that of the schedule: where it falls, more entries are dropped than grow; else as many grow as
were dropped; and where fewer can grow, the strongest dropped ones are restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np

from hse_dist.config import SparsitySettings
from hse_dist.errors import ProtocolError
from hse_dist.sparsity.budget import RowNumbers, divide, row_numbers, rows_compete
from hse_dist.sparsity.messages import Close, Closed, Event, Failed, Histogram, Message, Open, Plan, Purpose
from hse_dist.sparsity.schedule import LiveCounts, drop_fraction, live_after, only_falls_at, start_counts
from hse_dist.sparsity.selection import Counts, Query, RadixSelection, Selection, score_of
from hse_dist.sparsity.structure import row_limits

LARGEST: dict[Purpose, bool] = {"drop": False, "grow": True, "restore": True}
"""Which end of the order each selection takes."""


def note(total: Mapping[str, int], offered: int, fraction: float, *, grouped: bool = False) -> str | None:
    """Why a rewire moved nothing; None where it did, or should not.

    Args:
        total: entries `dropped`, `grown`, … of all ranks. offered: positions that were not live and could have grown.
        fraction: of the live entries, that was to move. grouped: whether groups of columns may be full.
    """
    if not total["dropped"]:
        return "nothing was dropped: no entry with a score is above its row's floor, or the fraction is too small"
    if total["grown"]:
        return None
    if not total["restored"]:  # all that was dropped is by what the number falls
        return "nothing moved: no other entry has a score, or the fraction is too small" if fraction else None
    back = "what was dropped came back" if total["restored"] == total["dropped"] else "what was to move came back"
    if not offered:
        return f"nothing grew: there was no candidate; {back}"
    full = "row is at its ceiling, or its group of columns full" if grouped else "row is at its ceiling"
    return f"nothing grew: every candidate's {full}; {back}"


class SparsityServer:
    """The state between messages.

    Args:
        settings: what to drop, grow and keep.
        steps: length of the run, for the schedule.
        ranks: how many ranks there are.
    """

    def __init__(self, settings: SparsitySettings, steps: int, ranks: int) -> None:
        self.settings, self.steps, self.ranks = settings, steps, ranks
        self.version = 0
        self.journal: list[dict[str, Any]] = []
        self._order: list[int] = []
        self._live = 0
        self._plan = Plan(0, 0, 0, 0.0)
        self._selection: RadixSelection | None = None
        self._cut: RadixSelection | None = None
        self._purpose: Purpose | None = None
        self._results: dict[Purpose, Selection] = {}

    def decide(self, messages: Sequence[Message]) -> list[Any]:
        """The replies to one message of every rank, both in rank order.

        Raises:
            HseError: that of the first rank that failed.
            ProtocolError: the messages do not belong together, or not to this version.
        """
        for message in messages:
            if isinstance(message, Failed):
                raise message.error
        if len(messages) != self.ranks:
            raise ProtocolError(f"{len(messages)} messages came from {self.ranks} ranks.")
        kinds = {type(message) for message in messages}
        versions = {message.version for message in messages}
        if len(kinds) != 1 or versions != {self.version + 1}:
            raise ProtocolError(
                f"Ranks disagree: messages {sorted(kind.__name__ for kind in kinds)} of versions {sorted(versions)} "
                f"came, version {self.version + 1} is next.",
                cause="A rank restarted from another checkpoint, perhaps.",
            )
        first = messages[0]
        if isinstance(first, Open):
            return self._open(messages)  # type: ignore[arg-type]
        if isinstance(first, Event):
            return [self._record(messages)] * self.ranks  # type: ignore[arg-type]
        if isinstance(first, Histogram):
            return self._histogram(messages)  # type: ignore[arg-type]
        return [self._close(messages)] * self.ranks  # type: ignore[arg-type]

    def _open(self, messages: Sequence[Open]) -> list[Plan]:
        given = {message.step for message in messages}
        if len(given) != 1:
            raise ProtocolError(f"Ranks want to rewire at different steps: {sorted(given)}.")
        (step,) = given
        # canonical order: by first row; a rank without rows may stand anywhere
        self._order = sorted(range(self.ranks), key=lambda rank: (messages[rank].first_row, rank))
        before = sum(message.live for message in messages)
        self._live = self._scheduled(before, step)
        schedule, steps = self.settings.schedule, self.steps
        fraction = 0.0 if only_falls_at(self.settings, step, steps) else drop_fraction(schedule, step, steps)
        droppable = sum(message.droppable for message in messages)
        fewer = before - self._live
        moved = min(int(fraction * self._live), max(droppable - fewer, 0))
        self._plan = Plan(self.version + 1, fewer + moved, moved, fraction)
        self._selection, self._purpose, self._results = None, None, {}
        rows = self._rows(messages) if fewer and not rows_compete(self.settings.budget) else [None] * self.ranks
        return [replace(self._plan, rows=own) for own in rows]

    def _scheduled(self, live: int, step: int) -> int:
        """How many of the `live` entries (of blocks of columns: blocks) the schedule leaves after `step`'s rewire."""
        unit = self.settings.structure.unit
        counts = start_counts(self.journal, unit)
        return (
            live if counts is None else min(live, live_after(self.settings.schedule, counts, step, self.steps) // unit)
        )

    def _rows(self, messages: Sequence[Open]) -> list[RowNumbers]:
        """What each rank's rows are cut down to."""
        given = [np.empty(0, np.int64) if one.rows_by_live is None else one.rows_by_live for one in messages]
        by_rank = np.array(list(zip_longest(*given, fillvalue=0)), np.int64).reshape(-1, self.ranks).T
        numbers = row_numbers(by_rank.sum(0), self._live, row_limits(self.settings)[0])
        parts = dict(zip(self._order, divide(numbers, by_rank[self._order]), strict=True))
        return [parts[rank] for rank in range(self.ranks)]

    def _record(self, messages: Sequence[Event]) -> Closed:
        first = messages[0]
        if any(message != first for message in messages):
            raise ProtocolError(f"Ranks disagree on the {first.kind} of step {first.step}.")
        self.version += 1
        self.journal.append({"version": self.version, "step": first.step, "kind": first.kind, **first.facts})
        return Closed(self.version, self.journal[-1])

    def _histogram(self, messages: Sequence[Histogram]) -> list[Query | Selection]:
        (purpose,) = {message.purpose for message in messages} if messages else {None}
        if purpose is None or purpose in self._results:
            raise ProtocolError(f"The selection {purpose!r} of version {self.version + 1} is already made.")
        if self._purpose != purpose or self._selection is None:
            self._purpose = purpose
            self._selection = RadixSelection(self._count(purpose), LARGEST[purpose])
        answer = self._selection.feed(np.stack([messages[rank].counts for rank in self._order]))
        if isinstance(answer, Query):
            return [answer] * self.ranks
        self._results[purpose] = answer
        quotas = dict(zip(self._order, answer.quotas, strict=True))
        return [Selection(answer.threshold, (quotas[rank],), answer.count) for rank in range(self.ranks)]

    def _count(self, purpose: Purpose) -> int:
        if purpose == "drop":
            return self._plan.drop
        if purpose == "grow":
            return self._plan.grow
        return self._plan.grow - self._results["grow"].count

    def _close(self, messages: Sequence[Close]) -> Closed:
        total = {
            name: sum(getattr(message, name) for message in messages)
            for name in ("live", "dropped", "grown", "restored", "visits", "offered")
        }
        if total["live"] != self._live:
            raise ProtocolError(
                f"After rewire {self.version + 1} there are {total['live']} live entries, not {self._live}."
            )
        self.version += 1
        thresholds = {purpose: score_of(selection.threshold) for purpose, selection in self._results.items()}
        policy = {name: getattr(self.settings, name).kind for name in ("drop", "grow", "budget", "structure")}
        grouped, offered = policy["structure"] == "n_of_m", total.pop("offered")
        why = note(total, offered, self._plan.fraction, grouped=grouped)
        for name in ("live", "dropped", "grown", "restored"):
            total[name] *= self.settings.structure.unit
        self.journal.append(
            {
                "version": self.version,
                "step": messages[0].step,
                "policy": policy,
                "fraction": self._plan.fraction,
                "thresholds": thresholds,
                "note": why,
                **total,
                **messages[0].facts,
            }
        )
        return Closed(self.version, self.journal[-1])

    def new_cut(self, count: int, largest: bool) -> RadixSelection:
        """The selection of a start: before there are ranks, the driver feeds it the histograms of the start's files."""
        self._cut = RadixSelection(count, largest)
        return self._cut

    def feed_cut(self, histograms: Counts) -> Query | Selection:
        """The next query of the selection of a start, or its answer.

        Raises:
            ProtocolError: no such selection was begun, or the histograms do not fit it.
        """
        if self._cut is None:
            raise ProtocolError("Histograms of a start came before its selection was begun.")
        return self._cut.feed(histograms)

    def record_start(self, kind: str, counts: LiveCounts) -> None:
        """Open the journal with the start, version 0."""
        policy, live = {"budget": self.settings.budget.kind}, {"live": counts.start, "goal": counts.goal}
        self.journal = [{"version": 0, "step": 0, "start": kind, "policy": policy, **live}]

    def state_dict(self) -> dict[str, Any]:
        """Version and journal, as JSON can hold them; valid between rewires."""
        return {"version": self.version, "journal": list(self.journal)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of an earlier server."""
        self.version, self.journal = int(state["version"]), list(state["journal"])
