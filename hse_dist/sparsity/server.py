"""The SparsityServer: decides for all ranks which entries are dropped, grown and restored.

In: one message of every rank, in rank order. Out: one reply for all of them, or for each. It holds no table, only
counts: payloads are kilobytes whatever the tables' size. It is pure: no Ray, no clock, no files; the Ray actor
(`actor.py`) and the process group (`client.py`) are two ways to bring messages here.

The live count is exact: with a global budget, as many entries grow as were dropped, and where fewer can grow, the
strongest dropped ones are restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hse_dist.config import SparsitySettings
from hse_dist.errors import ProtocolError
from hse_dist.sparsity.messages import Close, Closed, Failed, Histogram, Message, Open, Plan, Purpose
from hse_dist.sparsity.schedule import drop_fraction
from hse_dist.sparsity.selection import Counts, Query, RadixSelection, Selection, score_of

LARGEST: dict[Purpose, bool] = {"drop": False, "grow": True, "restore": True}
"""Which end of the order each selection takes."""


def note(total: Mapping[str, int], offered: int) -> str | None:
    """Why a rewire changed nothing; None where it did.

    Args:
        total: entries `dropped`, `grown`, … of all ranks. offered: positions that were not live and could have grown.
    """
    if not total["dropped"]:
        return "nothing was dropped: no entry with a score is above its row's floor, or the fraction is too small"
    if total["grown"]:
        return None
    if not offered:
        return "nothing grew: there was no candidate; what was dropped came back"
    return "nothing grew: every candidate's row is at its ceiling; what was dropped came back"


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
        self._plan = Plan(0, 0, 0.0)
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
            return [self._open(messages)] * self.ranks  # type: ignore[arg-type]
        if isinstance(first, Histogram):
            return self._histogram(messages)  # type: ignore[arg-type]
        return [self._close(messages)] * self.ranks  # type: ignore[arg-type]

    def _open(self, messages: Sequence[Open]) -> Plan:
        steps = {message.step for message in messages}
        if len(steps) != 1:
            raise ProtocolError(f"Ranks want to rewire at different steps: {sorted(steps)}.")
        # canonical order: by first row; a rank without rows may stand anywhere
        self._order = sorted(range(self.ranks), key=lambda rank: (messages[rank].first_row, rank))
        self._live = sum(message.live for message in messages)
        fraction = drop_fraction(self.settings.schedule, messages[0].step, self.steps)
        droppable = sum(message.droppable for message in messages)
        self._plan = Plan(self.version + 1, min(int(fraction * self._live), droppable), fraction)
        self._selection, self._purpose, self._results = None, None, {}
        return self._plan

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
            return self._plan.drop
        return self._plan.drop - self._results["grow"].count

    def _close(self, messages: Sequence[Close]) -> Closed:
        total = {
            name: sum(getattr(message, name) for message in messages)
            for name in ("live", "dropped", "grown", "restored", "visits", "offered")
        }
        if total["live"] != self._live:
            raise ProtocolError(
                f"After rewire {self.version + 1} there are {total['live']} live entries, but {self._live} before."
            )
        self.version += 1
        thresholds = {purpose: score_of(selection.threshold) for purpose, selection in self._results.items()}
        policy = {name: getattr(self.settings, name).kind for name in ("drop", "grow", "budget")}
        offered = total.pop("offered")
        self.journal.append(
            {
                "version": self.version,
                "step": messages[0].step,
                "policy": policy,
                "fraction": self._plan.fraction,
                "thresholds": thresholds,
                "note": note(total, offered),
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

    def record_start(self, kind: str, live: int) -> None:
        """Open the journal with the start, version 0."""
        self.journal = [
            {"version": 0, "step": 0, "start": kind, "policy": {"budget": self.settings.budget.kind}, "live": live}
        ]

    def state_dict(self) -> dict[str, Any]:
        """Version and journal, as JSON can hold them; valid between rewires."""
        return {"version": self.version, "journal": list(self.journal)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of an earlier server."""
        self.version, self.journal = int(state["version"]), list(state["journal"])
