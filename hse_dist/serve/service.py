"""What a replica does, without HTTP: it answers, looks for a newer export, and takes it.

In: questions, from any thread. Out: answers, each from one export as a whole: a question that began with the old export
ends with it. An export that is unfit is refused, logged once, and the one before goes on answering.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from hse_dist.errors import ConfigError, HseError
from hse_dist.export.live import LiveRecommender
from hse_dist.serve.counts import Counts
from hse_dist.serve.messages import Answer, Reason, Reloaded
from hse_dist.serve.options import Limits
from hse_dist.serve.place import Found, find

PAUSE_SECONDS, MOST_PAUSE_SECONDS = 2.0, 300.0
"""Before what failed is tried again: first, and at most."""
log = logging.getLogger(__name__)


class Service:
    """Of one replica.

    Args:
        place: see `place.py`.
        threads: of the kernels, for one answer.

    Attributes:
        ending: no more questions are taken.

    Raises:
        HseError: there is no export that could be served.
    """

    def __init__(self, place: str | Path, limits: Limits, threads: int = 1) -> None:
        self._place, self._limits, self._lock = Path(place), limits, threading.Lock()
        self._seen: Found = find(self._place)
        self._live = LiveRecommender(self._seen.folder, threads)
        self._missing = ""
        self._failed: Found | None = None
        self._pause = self._next_try = 0.0
        self.ending = False
        self.counts = Counts()
        self.counts.version(self.version)

    @property
    def version(self) -> str:
        """Names the content of the export that is answered from: the same in all replicas."""
        return self._live.current.version[:12]

    @property
    def items(self) -> int:
        """Of that export."""
        return len(self._live.current.item_ids)

    @property
    def features(self) -> tuple[str, ...]:
        """Of users, that this export knows."""
        return self._live.current.features

    def answer(self, question: Any) -> Answer:
        """Answer a question (`messages.question_model`).

        Raises:
            ConfigError: it asks for what cannot be.
        """
        if question.explain and question.k > self._limits.max_explained:
            raise ConfigError(
                f"k = {question.k} is more than {self._limits.max_explained}, the most that this server explains."
            )
        found = self._live.current.recommend(
            question.history,
            question.k,
            features=question.features,
            seen=question.seen,
            allow=question.allow,
            deny=question.deny,
            explain=question.explain,
            reason_items=self._limits.max_reason_items,
        )
        self.counts.unknown(len(found.unknown))
        reasons = None
        if found.reasons is not None:
            reasons = [[Reason(**vars(reason)) for reason in of_item] for of_item in found.reasons]
        return Answer(
            items=found.items,
            scores=found.scores,
            unknown=found.unknown,
            reasons=reasons,
            unknown_features=found.unknown_features,
        )

    @property
    def well(self) -> bool:
        """Whether the last look found what is answered from."""
        return not self._missing and self._failed is None

    def look(self, *, again: bool = False) -> Reloaded:
        """Take the export that lies at the place now, if it is another one.

        What failed is tried again after a pause that grows: it may have been the machine, and not the export.

        Args:
            again: try what failed before without a pause.

        Raises:
            HseError: it is unfit, or there is none; the one before is kept.
        """
        with self._lock:  # one at a time: two would need the memory of three exports
            found = self._find(again)
            if found == self._seen:
                self._failed = None
            elif again or found != self._failed or time.monotonic() >= self._next_try:
                return self._take(found)
            return Reloaded(version=self.version, changed=False)

    def _find(self, again: bool) -> Found:
        try:
            found = find(self._place)
        except Exception as error:
            if again or self._missing != str(error):  # once, and not at every look
                self.counts.reload(taken=False)
            self._missing = str(error)
            raise
        self._missing = ""
        return found

    def _take(self, found: Found) -> Reloaded:
        before = self.version
        try:
            self._live.reload(found.folder)
        except Exception:
            self._pause = min(2 * self._pause, MOST_PAUSE_SECONDS) if found == self._failed else PAUSE_SECONDS
            self._failed, self._next_try = found, time.monotonic() + self._pause
            self.counts.reload(taken=False)
            raise
        self._seen, self._failed = found, None
        if changed := self.version != before:
            self.counts.reload(taken=True)
            self.counts.version(self.version)
            log.info("Another export: %s, version %s", found.folder, self.version)
        return Reloaded(version=self.version, changed=changed)


class Watch:
    """Looks again and again; what goes wrong is logged once, until something else goes wrong."""

    def __init__(self, service: Service) -> None:
        self._service, self._said = service, ""

    def __call__(self) -> None:
        """Look once; raises nothing."""
        try:
            self._service.look()
        except HseError as error:
            if self._said != str(error):
                log.warning("The export before goes on answering: %s", error)
            self._said = str(error)
        except Exception as error:
            # no memory, no file descriptor, or a bug of ours: it must not end the looking
            if self._said != repr(error):
                log.exception("Looking for a newer export failed; the one before goes on answering")
            self._said = repr(error)
        else:
            if self._service.well:
                self._said = ""
