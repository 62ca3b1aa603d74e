"""A process that reads hostile exports, so that a crash of it is a finding and not the end of the tests.

In: lines with the folder of an export. Out: a line each: what `use` raised as an `HseError`, nothing where it raised
nothing, and a traceback in every other case. `Victim` talks to it, with limits of time and memory, and begins a new one
where it died.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Self

import numpy as np

from hse_dist.errors import HseError
from hse_dist.export.format import load_export
from hse_dist.export.recommender import Recommender
from hse_dist.inspect.look import inspect

SECONDS = 30.0
"""For an answer, the first import included."""
BYTES = 4 << 30
"""Address space of the process."""


def use(folder: Path) -> None:
    """All that is asked of an export: answers with and without kernels, of many users at once, and a look at it."""
    try:
        with_bounds_alone = load_export(folder, verify=False)
    except HseError:
        pass
    else:
        Recommender(with_bounds_alone).recommend(with_bounds_alone.item_ids.slice(0, 3).to_pylist(), 5)
    export = load_export(folder)
    items = len(export.item_ids)
    history = export.item_ids.slice(0, 3).to_pylist()
    features: dict[str, list[object]] = {}
    if export.features is not None:
        known = zip(export.features.names, export.features.values, strict=True)
        features = {name: [*values.slice(0, 2).to_pylist(), "nothing"] for name, values in known}
    answers = []
    for kernels in (True, False):
        recommender = Recommender(export, kernels=kernels)
        recommender.recommend(["nobody", -1, None, 2.5], 3)
        answers.append(recommender.recommend(history, 5, features=features))
        offsets, rows = np.arange(0, min(items, 40) + 1), np.arange(min(items, 40))
        top, scores = recommender.recommend_rows(offsets, rows, 4)
        assert (top < items).all() and not np.isnan(scores).any(), "an answer that is none"
    # an index that somebody has forged is believed by kernels alone
    told = export.postings is not None or export.by_column is not None
    assert told or answers[0].items == answers[1].items, "kernels answer something else"
    inspect(export, None, 3)


def main() -> None:
    """Answer until the end of the input."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for line in sys.stdin:
        answer = {}
        try:
            use(Path(json.loads(line)))
        except HseError as error:
            answer["said"] = str(error)
        except BaseException:
            answer["bug"] = traceback.format_exc()
        print(json.dumps(answer), flush=True)


class Victim:
    """The process. Context manager."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        # two threads, so that kernels have neighbours
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "hse_dist.testing.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            text=True,
            errors="replace",
        )

    def use(self, folder: Path) -> str | None:
        """None where the export could be used, or what was said of it.

        Raises:
            AssertionError: it crashed, hung or raised something else.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(str(folder)) + "\n")
        stdin.flush()
        ready = select.select([stdout], [], [], SECONDS)[0]
        line = stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            _, said = self._process.communicate()
            code = self._process.returncode
            self._start()
            what = "hung" if not ready else f"died of signal {-code} ({signal.strsignal(-code)})"
            raise AssertionError(f"the process {what}: {said}")
        answer: dict[str, str] = json.loads(line)
        assert "bug" not in answer, answer["bug"]
        return answer.get("said")


if __name__ == "__main__":
    main()
