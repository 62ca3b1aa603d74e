"""What a job is sent: one archive with its configuration and, where asked for, the code of a folder.

In: the text of the configuration, and perhaps a folder. Out: a zip, which Ray unpacks into the job's working directory
on every node and puts first in its PYTHONPATH. The configuration may lie anywhere, so it is put in by its content.

Without a folder the cluster's own code runs: that of its image, with its compiled kernels, which no upload carries (git
ignores them, and a cluster may have other processors). With one, that folder's code takes its place.
"""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path

from hse_dist.errors import ConfigError

CONFIG = ".hse-submitted.toml"
"""The configuration's name in the working directory."""
MOST_BYTES = 100 << 20
"""Of an archive; Ray keeps it in the head's memory."""


def make_package(target: Path, config: str, folder: Path | None = None) -> int:
    """Write the archive; its bytes.

    Args:
        config: text of the configuration.
        folder: whose files go along, but for those that .rayignore and .gitignore name.

    Raises:
        ConfigError: there is no such folder, or it is too large.
    """
    if folder is not None:
        _pack(folder, target)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, config)
    size = target.stat().st_size
    if size > MOST_BYTES:
        raise ConfigError(
            f"The job's files take {size / 1e6:.0f} MB, more than {MOST_BYTES / 1e6:.0f}.",
            cause=f"Name what the job does not need in {folder}/.rayignore.",
            setting="--working-dir",
            value=str(folder),
        )
    return size


def _pack(folder: Path, target: Path) -> None:
    """As `ray job submit --working-dir` does, by its own function."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}.", setting="--working-dir", value=str(folder))
    gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    quiet = logging.getLogger("ray.package")
    quiet.setLevel(logging.WARNING)
    create_package(
        str(folder), target, include_gitignore=gitignore, excludes=get_runtime_env_default_excludes(), logger=quiet
    )
