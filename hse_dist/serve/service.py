"""What a replica does, without HTTP: it answers, looks for a newer export, and takes it.

In: questions, from any thread. Out: answers, each from one export as a whole: a question that began with the old export
ends with it. An export that is unfit is refused, logged once, and the one before goes on answering.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from hse_dist.errors import HseError
from hse_dist.export.recommender import Recommender
from hse_dist.serve.counts import Counts
from hse_dist.serve.messages import Answer, Reloaded
from hse_dist.serve.place import Found, find

log = logging.getLogger(__name__)


class Live:
    def __init__(self, folder: Path) -> None:
        self.reload(folder)

    def reload(self, folder: Path) -> None:
        self.current = Recommender.load(folder, 1)
        self.version = str(folder)


class Service:
    """Of one replica.

    Args:
        place: see `place.py`.

    Raises:
        HseError: there is no export that could be served.
    """

    def __init__(self, place: str | Path) -> None:
        self._place, self._lock = Path(place), threading.Lock()
        self._seen: Found = find(self._place)
        self._live = Live(self._seen.folder)
        self.counts = Counts()
        self.counts.version(self.version)

    @property
    def version(self) -> str:
        """Of the export that is answered from."""
        return str(self._live.version)

    @property
    def items(self) -> int:
        """Of that export."""
        return len(self._live.current.item_ids)

    def answer(self, question: Any) -> Answer:
        """Answer a question (`messages.question_model`).

        Raises:
            ConfigError: it asks for what cannot be.
        """
        found = self._live.current.recommend(question.history, question.k)
        self.counts.unknown(len(found.unknown))
        return Answer(items=found.items, scores=found.scores, unknown=found.unknown)

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
