"""A recommender that is replaced while it answers.

In: folders of exports and of deltas. Out: `current`, which is always a whole `Recommender`. A new one is loaded
beside the old one, in the thread that asks for it, and takes its place by one assignment; calls that have begun end
on the one that they began on, which goes when the last of them has ended. So memory must hold two exports for a
moment.

Any number of threads may ask `current`; reloads wait for one another.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from hse_dist.export.checks import kind_of
from hse_dist.export.delta import KIND as DELTA
from hse_dist.export.recommender import Recommender


class LiveRecommender:
    """Serves the newest of the exports that it was given.

    Args:
        folder: of an export. threads, early, verify: as in `Recommender.load`.

    Raises:
        ExportError: the export is unfit.
    """

    def __init__(
        self, folder: str | Path, threads: int | None = None, *, early: int | None = None, verify: bool = True
    ) -> None:
        self._options: dict[str, Any] = {"threads": threads, "early": early, "verify": verify}
        self._reloading = threading.Lock()
        # one tuple, so that the three always belong together
        self._served = (self._loaded(Path(folder)), Path(folder), 1)

    def _loaded(self, folder: Path) -> Recommender:
        """Ready to answer: no query waits for an index."""
        recommender = Recommender.load(folder, **self._options)
        recommender.prepare()
        return recommender

    @property
    def current(self) -> Recommender:
        """Take it once for a request, and answer all of that request from it."""
        return self._served[0]

    @property
    def folder(self) -> Path:
        return self._served[1]

    @property
    def version(self) -> str:
        """Names what is served: the number of loads, and the content of the export."""
        recommender, _, loads = self._served
        return f"{loads}-{recommender.version[:12]}"

    def reload(self, folder: str | Path | None = None) -> str:
        """Load an export and serve it from now on, or what a delta makes of the one that is served.

        Args:
            folder: of an export or a delta; None: the same again, which after a delta changes nothing.

        Returns:
            The new version.

        Raises:
            ExportError: the export is unfit; the old one goes on.
        """
        with self._reloading:
            recommender, before, loads = self._served
            again, folder = folder is None, before if folder is None else Path(folder)
            delta = kind_of(folder) == DELTA
            if again and delta:
                return self.version
            served = recommender.update(folder) if delta else self._loaded(folder)
            self._served = (served, folder, loads + 1)
            return self.version
