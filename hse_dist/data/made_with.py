"""Whether a prepared folder is the one of some settings.

In: `config.data`. Out: the folder, opened, or one error that names each setting that differs. Settings of memory, tasks
and places change nothing of what is prepared, so they may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hse_dist.config import Config, DataSettings
from hse_dist.data.manifest import VERSION, differing
from hse_dist.data.prepared import Prepared
from hse_dist.errors import DataError
from hse_dist.files import read_json

NOT_CONTENT = {
    *("folder", "tasks", "memory_mb", "stream", "on_bad_file", "schemes"),
    *("extendable", "evict_after_days", "admission_mb"),
}
"""Settings that do not change what is written."""


def is_prepared(config: Config) -> bool:
    """Whether `config.data.folder` was made with these settings.

    Raises:
        DataError: it was made with other ones, by another version, or its manifest cannot be read.
    """
    path = Path(config.data.folder) / "manifest.json"
    if not path.exists():
        return False
    manifest = read_json(path, "manifest of the prepared folder")
    wanted = content_settings(config.data)
    made = manifest.get("settings") if isinstance(manifest, dict) else None
    if not isinstance(made, dict) or manifest.get("version") != VERSION:
        what = "was not made by this version of prepare"
    elif made != wanted:
        what = f"was made with other settings: {differing(made, wanted)}"
    else:
        return True
    raise DataError(
        f"The prepared folder {config.data.folder} {what}.",
        cause="Choose another folder, or remove this one.",
        setting="data.folder",
        value=config.data.folder,
    )


def open_prepared(config: Config) -> Prepared:
    """The prepared folder of these settings, for the jobs that do not prepare it themselves.

    Raises:
        DataError: there is none, or it was made with other settings.
    """
    if not is_prepared(config):
        raise DataError(
            f"There are no prepared histories in {config.data.folder}.",
            cause="Prepare them first.",
            setting="data.folder",
            value=config.data.folder,
        )
    return Prepared(config.data.folder)


def content_settings(settings: DataSettings) -> dict[str, Any]:
    """The settings that the content of a prepared folder follows from, JSON-able."""
    return settings.model_dump(mode="json", exclude=NOT_CONTENT)
