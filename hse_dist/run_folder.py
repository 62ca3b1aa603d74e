"""The run folder: whose it is, and where things lie in it.

In: a configuration. Out: paths, after a check that the folder belongs to this configuration. Settings that do not
change the result (cluster, blocks, exports) may differ between commands on one run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from hse_dist.config import Config, dump_config, parse_config
from hse_dist.errors import ConfigError, ProtocolError, RunFolderError
from hse_dist.files import new_file, read_json, write_json

FREE = (
    "cluster.",
    "evaluate.users",
    "evaluate.items",
    "export.",
    "follow.",
    "metrics.",
    "checkpoint.keep",
    "checkpoint.asynchronous",
    "checkpoint.schemes",
    "run.folder",
    "run.resume",
    "train.log_every",
    "train.on_nan",
    "data.on_bad_file",
    "data.folder",
    "data.extendable",
    "data.evict_after_days",
    "data.admission_mb",
    "data.schemes",
    "data.memory_mb",
    "data.tasks",
    "data.source",
    "data.stream.prefetch",
    "sparsity.local_inverse.tasks",
    "sparsity.grow.memory_mb",
)
"""Settings that may differ from those the run was made with."""

RUNS = ("run.continues", "train.teacher")
"""Settings that name other runs."""


class Data(Protocol):
    """What a run remembers of its prepared histories."""

    @property
    def fingerprint(self) -> str:
        """Differs where the content does."""


class RunFolder:
    """Paths of a run."""

    def __init__(self, config: Config) -> None:
        self.config, self.path = config, Path(config.run.folder)
        self.settings, self.data = self.path / "config.json", self.path / "data.json"
        self.start, self.checkpoints = self.path / "start", self.path / "checkpoints"
        self.start_of_features, self.teacher = self.path / "start-features", self.path / "teacher.json"
        self.early, self.server = self.path / "early", self.path / "server.json"
        self.owner, self.placement = self.path / "owner.json", self.path / "placement.json"
        self.progress = self.path / ".progress"
        self.metrics, self.journal = self.path / "metrics.jsonl", self.path / "topology.jsonl"
        self.export = Path(config.export.folder) if config.export.folder else self.path / "export"

    @property
    def started(self) -> bool:
        """Whether there is a run with a checkpoint, whole or damaged; without one the folder belongs to nobody."""
        there = (path for pattern in ("step-*", "damaged-*") for path in self.checkpoints.glob(pattern))
        # the journal is written once the first one is committed, wherever that lies
        return self.settings.exists() and (self.journal.exists() or any(there))

    @property
    def identity(self) -> str:
        """Of the settings that the run was made with, as hexadecimal digits; its checkpoints carry it."""
        there = flat(read_record(self.settings, "run's configuration"))
        kept = {key: value for key, value in there.items() if not key.startswith(FREE)}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def check_checkpoint(self, facts: Mapping[str, Any], address: str) -> None:
        """Check that a checkpoint, which may lie anywhere, is one of this run; those of old do not say.

        Raises:
            RunFolderError: it is another run's.
        """
        if facts.get("run", self.identity) != self.identity:
            raise RunFolderError(
                f"The checkpoint {address} is one of a run with other settings than that in {self.path}.",
                cause="Every run needs a place of its own for its checkpoints.",
                setting="checkpoint.folder",
                value=self.config.checkpoint.folder,
            )

    def claim(self) -> None:
        """Make the folder, or check that it belongs to this configuration.

        Raises:
            RunFolderError: it belongs to another one (names the settings), or cannot be written.
        """
        if self.started:
            self.check()
            return
        with self._writing(), new_file(self.settings) as temporary:
            temporary.write_text(dump_config(self.config), encoding="utf-8")

    def claim_data(self, data: Data) -> None:
        """Remember the data of a run that has no checkpoint yet, or check that they are still the same.

        Raises:
            RunFolderError: the run was trained on other data, or the folder cannot be written.
        """
        if self.started:
            self.check_data(data)
            return
        with self._writing():
            write_json(self.data, {"fingerprint": data.fingerprint})

    def check_data(self, data: Data) -> None:
        """Check that the run was trained on these data; `data.folder` is free, as folders may be moved.

        Raises:
            RunFolderError: it was trained on other data, or does not say on which.
        """
        if not self.data.exists():
            what = f"The run in {self.path} does not say which data it was trained on."
        elif read_record(self.data, "record of the run's data").get("fingerprint") != data.fingerprint:
            what = f"The run in {self.path} was trained on other data than these."
        else:
            return
        raise RunFolderError(
            what,
            cause="Use the prepared folder that it was trained on, or train into another run.folder.",
            setting="data.folder",
            value=self.config.data.folder,
        )

    def take_over(self, owner: str) -> None:
        """Make a worker group the one whose checkpoints count; one of before, that may still live, writes no more."""
        with self._writing():
            write_json(self.owner, {"owner": owner})

    def check_owner(self, owner: str) -> None:
        """Check that no other worker group has taken over.

        Raises:
            ProtocolError: one has.
        """
        if not self.owner.exists() or read_record(self.owner, "owner of the run").get("owner") != owner:
            raise ProtocolError(f"Another job has taken over the run in {self.path}: this one writes no checkpoint.")

    def check(self) -> None:
        """Check that the folder holds a run of this configuration.

        Raises:
            RunFolderError: there is no run, or it was made with other settings (which are named).
        """
        if not self.settings.exists():
            raise RunFolderError(
                f"There is no run in {self.path}.", cause="Train first.", setting="run.folder", value=str(self.path)
            )
        there = flat(self._then())
        here = flat(json.loads(dump_config(self.config)))
        differ = [
            f"{key} = {here.get(key)!r} here, {there.get(key)!r} there"
            for key in sorted(there.keys() | here.keys())
            if not key.startswith(FREE) and not _same(key, there.get(key), here.get(key))
        ]
        if differ:
            lines = "\n".join(f"  - {line}" for line in differ)
            raise RunFolderError(
                f"The run in {self.path} was made with other settings:\n{lines}\n"
                "Use another run.folder, or the settings of that run."
            )

    def _then(self) -> dict[str, Any]:
        """The run's settings; those that its version of the program did not know have their usual values."""
        then = read_record(self.settings, "run's configuration")
        with suppress(ConfigError):  # one that this version does not know is named as a difference
            then = parse_config(then, str(self.settings)).model_dump(mode="json")
        return then

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(f"The run folder {self.path} cannot be written: {error}.") from None


def _same(setting: str, there: Any, here: Any) -> bool:
    """Whether two values of a setting mean the same; a job that was submitted names runs by absolute paths."""
    if setting in RUNS and isinstance(there, str) and isinstance(here, str):
        return Path(there).absolute() == Path(here).absolute()
    return bool(there == here)


def read_record(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file of a run folder.

    Raises:
        DataError: there is no such file, or it is not JSON. RunFolderError: it is no object.
    """
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise RunFolderError(f"The {what} at {path} is not one that a run has written.")
    return content


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, its keys dotted paths."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def stored_config(run: str | Path, setting: str = "") -> Config:
    """The configuration of a run, wherever its folder is now, for one process.

    Args:
        setting: by which the run was named, for the message.

    Raises:
        RunFolderError: there is no run in this folder.
    """
    path = Path(run) / "config.json"
    if not path.exists():
        what = f"There is no run in {run}."
        cause = "It has no config.json: train it first, or name another folder."
        raise RunFolderError(what, cause=cause, setting=setting, value=str(run))
    raw = read_record(path, "run's configuration")
    parsed = parse_config(raw, str(path)).model_dump(mode="json")
    parsed["run"]["folder"], parsed["cluster"]["workers"] = str(run), 0
    return parse_config(parsed, str(path))
