"""Which checkpoints there are, and the first of them that is whole.

In: a place. Out: checkpoints with their facts, as far as manifests tell; or, with all ranks, one whose every file has
been read and fits. Whatever does not is set aside by rank 0: renamed, not removed, so that it can be looked at.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hse_dist.checkpoint.group import Gathers, together
from hse_dist.checkpoint.manifest import MANIFEST, Damaged, Manifest, check
from hse_dist.checkpoint.migrate import from_format_3, is_of_format_3
from hse_dist.checkpoint.place import ASIDE, LocalPlace, Place
from hse_dist.checkpoint.saving import FACTS
from hse_dist.checkpoint.streams import Files
from hse_dist.errors import RunFolderError
from hse_dist.files import too_deep

NUMBERS = ("metric", "start_metric", "best", "worse")
"""Facts that are numbers, or nothing."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        name: of its folder in its place. address: of it, for messages.
        facts: JSON.
        checked: whether all its files were read and fit the manifest.
    """

    name: str
    address: str
    manifest: Manifest
    facts: Mapping[str, Any]
    checked: bool = False

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def metric(self) -> float | None:
        """The validation metric after this step, if there was a validation."""
        return self.facts.get("metric")


Order = Callable[[Sequence[Checkpoint]], list[Checkpoint]]


def by_step(found: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The newest first."""
    return sorted(found, key=lambda one: -one.step)


def by_worth(found: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The best by validation first, of equal ones the earliest; then those without validation, the newest first."""
    judged = [one for one in found if one.metric is not None]
    others = [one for one in found if one.metric is None]
    return [*sorted(judged, key=lambda one: (-(one.metric or 0.0), one.step)), *by_step(others)]


def find(place: Place) -> tuple[list[Checkpoint], dict[str, str]]:
    """Checkpoints by step; and, by name, what is wrong with the others. Reads manifests and facts alone.

    Raises:
        RunFolderError: one is of a newer format, or the place cannot be read.
    """
    found, damaged = [], {}
    try:
        for name in place.folders():
            try:
                found.append(_look(place, name))
            except Damaged as error:
                damaged[name] = str(error)
    except OSError as error:
        raise RunFolderError(f"The checkpoints in {place.name} cannot be read: {error}.") from None
    return sorted(found, key=lambda one: one.step), damaged


def _look(place: Place, name: str) -> Checkpoint:
    manifest = _manifest(place, name)
    files = Files(place, name, manifest.files)
    try:
        facts = json.loads(files.read_checked(FACTS))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"the file {FACTS} is not JSON ({error})") from None
    if not isinstance(facts, dict) or too_deep(facts) or facts.get("step", manifest.step) != manifest.step:
        raise Damaged(f"the file {FACTS} has no facts of a checkpoint")
    for key in NUMBERS:
        number = facts.get(key)
        if number is not None and not (type(number) in (int, float) and abs(number) < math.inf):
            raise Damaged(f"the file {FACTS} has {key} = {str(number)[:80]}")
    return Checkpoint(name, place.address(name), manifest, facts)


def _manifest(place: Place, name: str) -> Manifest:
    try:
        with place.read(f"{name}/{MANIFEST}") as file:
            data = file.read()
    except FileNotFoundError:
        return _migrated(place, name)
    except OSError as error:
        raise Damaged(f"the file {MANIFEST} cannot be read ({error})") from None
    return Manifest.parse(data, place.address(name))


def _migrated(place: Place, name: str) -> Manifest:
    """The manifest of a checkpoint that has none, because it is older than manifests."""
    try:
        with place.read(f"{name}/{FACTS}") as file:
            facts = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        facts = None
    if not (is_of_format_3(facts) and isinstance(place, LocalPlace)):
        raise Damaged(f"the file {MANIFEST} is missing")
    step = facts.get("step")
    if type(step) is not int or step < 0:
        raise Damaged(f"the file {FACTS} has the step {step!r}")
    return from_format_3(place, name, step)


def open_first(place: Place, ranks: Gathers, order: Order) -> Checkpoint | None:
    """The first checkpoint in `order` that is whole; None where there never was one. A collective call.

    Raises:
        RunFolderError: none of them is whole; or see `find`.
    """
    what, passed = f"The checkpoints in {place.name} cannot be read", set[str]()
    while True:
        found = together(ranks, what, lambda: _take(place, order, passed) if ranks.rank == 0 else None)[0]
        if found is None:
            return None
        reasons = together(ranks, what, partial(_check_share, place, found, ranks))
        wrong = next((reason for reason in reasons if reason), None)
        if wrong is None:
            return replace(found, checked=True)
        passed.add(found.name)
        if ranks.rank == 0:
            _set_aside(place, found.name, wrong)


def _take(place: Place, order: Order, passed: set[str]) -> Checkpoint | None:
    found, damaged = find(place)
    for name in damaged.keys() - passed:
        _set_aside(place, name, damaged[name])
    passed |= damaged.keys()
    first = next((one for one in order(found) if one.name not in passed), None)
    if first is None:
        none_left(place, dict.fromkeys(passed, "damaged"))
    return first


def _set_aside(place: Place, name: str, reason: str) -> None:
    try:
        now = f"was set aside as {place.set_aside(name)}"
    except OSError as error:
        now = f"cannot be set aside ({error})"
    log.warning("The checkpoint %s is damaged: %s. It %s; another one is used", place.address(name), reason, now)


def none_left(place: Place, damaged: dict[str, str]) -> None:
    """Refuse to begin anew where there have been checkpoints, and none of them is good.

    Raises:
        RunFolderError: this is so; names them.
    """
    there = place.aside()
    names = [f"{name} ({reason})" for name, reason in damaged.items() if f"{ASIDE}{name}" not in there] + there
    if names:
        raise RunFolderError(
            f"No good checkpoint is left in {place.name}: {', '.join(names)}.",
            cause="Put one back from a copy, or remove these to begin anew.",
        )


def check_all(place: Place, checkpoint: Checkpoint) -> None:
    """Check every file.

    Raises:
        Damaged: the first that does not fit.
    """
    for name in checkpoint.manifest.files:
        _check_file(place, checkpoint, name)


def _check_file(place: Place, checkpoint: Checkpoint, name: str) -> None:
    check(name, checkpoint.manifest.files[name], partial(place.read, f"{checkpoint.name}/{name}"))


def _check_share(place: Place, checkpoint: Checkpoint, ranks: Gathers) -> str | None:
    """What is wrong with this rank's share of the files, if something is; the largest are dealt out first."""
    files = checkpoint.manifest.files
    for name in sorted(files, key=lambda one: (-files[one].size, one))[ranks.rank :: ranks.size]:
        try:
            _check_file(place, checkpoint, name)
        except Damaged as error:
            return str(error)
    return None
