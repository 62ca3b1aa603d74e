"""The best of several starts, by validation.

In: numbers to choose from, how to make the files of a start with one of them, and a judge of starts. Out: the files of
the best. What the starts share (the counts of pairs) is the caller's and is made once.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hse_dist.files import write_json
from hse_dist.sparsity.start.folder import StartFolder

Judge = Callable[[StartFolder], float]
"""What a start is worth on validation; more is better."""

log = logging.getLogger(__name__)


def best_of(
    values: Sequence[float],
    target: Path,
    make: Callable[[float, Path], dict[str, Any]],
    manifest: Callable[[dict[str, Any]], dict[str, Any]],
    judge: Judge | None,
) -> dict[str, Any]:
    """Make a start with each value and move the files of the best to `target`; of equals the first one wins.

    Args:
        make: writes the rows and entries of a start with this value into this folder; what its manifest says.
        manifest: the whole manifest from that.

    Returns:
        what the manifest of the best says, with `regularization` and `validation` (value as text → worth).
    """
    if judge is None:
        raise ValueError("a list of regularizations needs a judge")
    tried: dict[float, float] = {}
    best: tuple[float, dict[str, Any]] | None = None
    for value in values:
        folder, kept = target / "try", target / "best"
        made = make(value, folder)
        write_json(folder / "manifest.json", manifest(made))
        tried[value] = judge(StartFolder(folder))
        log.info("The start with regularization %g is worth %.4f on validation", value, tried[value])
        if best is not None and tried[value] <= tried[best[0]]:
            shutil.rmtree(folder)
            continue
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)
        best = value, made
    assert best is not None, "nothing to choose from"
    for kind in ("rows", "entries"):
        (kept / kind).rename(target / kind)
    shutil.rmtree(kept)
    worths = {f"{value:g}": worth for value, worth in tried.items()}
    return {**best[1], "regularization": best[0], "validation": worths}
