"""The run folder: whose it is, and where things lie in it.

In: a configuration. Out: paths, after a check that the folder belongs to this configuration. Settings that do not
change the result (cluster, blocks, exports) may differ between commands on one run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hse_dist.config import Config, dump_config
from hse_dist.errors import RunFolderError
from hse_dist.files import new_file, read_json

FREE = (
    "cluster.",
    "evaluate.users",
    "evaluate.items",
    "export.",
    "checkpoint.",
    "run.folder",
    "run.resume",
    "train.log_every",
    "data.folder",
    "data.memory_mb",
    "data.tasks",
    "data.source",
    "data.stream.prefetch",
    "sparsity.local_inverse.tasks",
    "sparsity.rewire.memory_mb",
)
"""Settings that may differ from those the run was made with."""


class RunFolder:
    """Paths of a run."""

    def __init__(self, config: Config) -> None:
        self.config, self.path = config, Path(config.run.folder)
        self.settings = self.path / "config.json"
        self.start, self.checkpoints = self.path / "start", self.path / "checkpoints"
        self.metrics, self.journal = self.path / "metrics.jsonl", self.path / "topology.jsonl"
        self.export = Path(config.export.folder) if config.export.folder else self.path / "export"

    def claim(self) -> None:
        """Make the folder, or check that it belongs to this configuration; without a checkpoint it belongs to nobody.

        Raises:
            RunFolderError: it belongs to another one (names the settings), or cannot be written.
        """
        if self.settings.exists() and any(self.checkpoints.glob("step-*")):
            self.check()
            return
        try:
            with new_file(self.settings) as temporary:
                temporary.write_text(dump_config(self.config), encoding="utf-8")
        except OSError as error:
            raise RunFolderError(f"The run folder {self.path} cannot be written: {error}.") from None

    def check(self) -> None:
        """Check that the folder holds a run of this configuration.

        Raises:
            RunFolderError: there is no run, or it was made with other settings (which are named).
        """
        if not self.settings.exists():
            raise RunFolderError(
                f"There is no run in {self.path}.", cause="Train first.", setting="run.folder", value=str(self.path)
            )
        there = _flat(read_json(self.settings, "run's configuration"))
        here = _flat(json.loads(dump_config(self.config)))
        differ = [
            f"{key} = {here.get(key)!r} here, {there.get(key)!r} there"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key) and not key.startswith(FREE)
        ]
        if differ:
            lines = "\n".join(f"  - {line}" for line in differ)
            raise RunFolderError(
                f"The run in {self.path} was made with other settings:\n{lines}\n"
                "Use another run.folder, or the settings of that run."
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
