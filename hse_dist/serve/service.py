"""What a replica does, without HTTP: it answers, looks for a newer export, and takes it.

In: questions, from any thread. Out: answers, each from one export as a whole: a question that began with the old export
ends with it. An export that is unfit is refused, logged once, and the one before goes on answering.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from hse_dist.errors import ConfigError, HseError
from hse_dist.export.live import LiveRecommender
from hse_dist.serve.counts import Counts
from hse_dist.serve.messages import Answer, Reason, Reloaded
from hse_dist.serve.options import Limits
from hse_dist.serve.place import Found, find

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
        return Answer(items=found.items, scores=found.scores, unknown=found.unknown, reasons=reasons)

    def look(self, *, again: bool = False) -> Reloaded:
        """Take the export that lies at the place now, if it is another one.

        Args:
            again: try even what was refused before.

        Raises:
            HseError: it is unfit, or there is none; the one before is kept.
        """
        with self._lock:  # one at a time: two would need the memory of three exports
            found = find(self._place)
            if found == self._seen and not again:
                return Reloaded(version=self.version, changed=False)
            before, self._seen = self.version, found
            try:
                self._live.reload(found.folder)
            except HseError:
                self.counts.reload(taken=False)
                raise
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
        except Exception:
            # a bug of ours must not end the looking
            log.exception("Looking for a newer export failed")
        else:
            self._said = ""
