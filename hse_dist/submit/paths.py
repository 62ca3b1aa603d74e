"""What a job's words mean on another machine: relative paths become absolute ones.

In: a configuration, and the folder in which the command runs. Out: overrides that replace relative paths, and the
folders that both machines must see. The job runs in a folder of Ray's that is swept, so no path may stay relative.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from hse_dist.config import Config

NO_PATHS = ("catalog:", "$", "~")
"""Beginnings of a source that mean something of their own; a variable or a home is the cluster's."""


@dataclass(frozen=True)
class Paths:
    """Overrides, and by setting the folders to share."""

    overrides: list[str] = field(default_factory=list)
    shared: dict[str, Path] = field(default_factory=dict)


def absolute(config: Config, here: Path) -> Paths:
    """The relative paths of `config`, as seen from the folder `here`."""
    given = {
        "run.folder": config.run.folder,
        "run.continues": config.run.continues,
        "train.teacher": config.train.teacher,
        "data.folder": config.data.folder,
        "export.folder": config.export.folder,
        "checkpoint.folder": config.checkpoint.folder,
    }
    found = Paths()
    for setting, path in given.items():
        if path is not None and is_relative(path):
            found.overrides.append(override(setting, here / path))
            found.shared[setting] = here / path
    sources = {"data.source": config.data.source}
    sources |= {f"data.features.{name}.source": feature.source for name, feature in config.data.features.items()}
    for setting, source in sources.items():
        if source not in ("", "synthetic") and not source.startswith(NO_PATHS) and is_relative(source):
            found.overrides.append(override(setting, here / source))
    return found


def is_relative(path: str) -> bool:
    """Whether it is a path, and a relative one."""
    return "://" not in path and not Path(path).is_absolute()


def override(setting: str, path: Path) -> str:
    """`setting="path"`: quoted, as a path may look like a number or a list."""
    return f"{setting}={json.dumps(str(path), ensure_ascii=False)}"
