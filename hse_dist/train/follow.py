"""Continual training: a log is watched, and every time something has come there is a round.

In: a configuration whose log grows by files. Out, round by round:

    data.folder/0003     the prepared version: the one before, extended by the new complete partitions
    RUN/rounds/0003      a run that continues the one before; `round.json` once it has ended
    RUN/exports/0003     its export; then `RUN/exports/latest.json`, replaced by a rename, names it

All that is remembered is in these folders, each of which appears whole: what is to be done next (`next_step`) follows
from what is there. So whoever is started again goes on where the one before stopped, in the middle of a round too.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any, Literal

from hse_dist.cluster import connect
from hse_dist.config import Config, FollowSettings, parse_config
from hse_dist.data.extend import Extended, refuse_features
from hse_dist.data.manifest import MANIFEST
from hse_dist.data.prepare import prepare
from hse_dist.data.schema import has_rows
from hse_dist.data.source import LogFile, find_files
from hse_dist.errors import ConfigError, DataError, PreemptedError, RunFolderError
from hse_dist.export.writer import export
from hse_dist.files import write_json
from hse_dist.preemption import came, ending
from hse_dist.run_folder import RunFolder, read_record, stored_config
from hse_dist.train.driver import train
from hse_dist.train.numbered import alone, name, newest, prune, sweep

ROUND, LATEST = "round.json", "latest.json"
Step = Literal["export", "train", "prepare", "wait", "end"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What is there: the last prepared version, the last round that has ended, that of the newest export; 0: none."""

    prepared: int
    trained: int
    exported: int


def next_step(state: State, settings: FollowSettings, *, news: bool, idle_seconds: float) -> Step:
    """What is to be done.

    Args:
        news: whether complete partitions have files that are not prepared.
        idle_seconds: since there was something to do.
    """
    due = state.trained - state.trained % settings.export_every
    if due > state.exported:
        return "export"
    if state.prepared > state.trained:
        return "train"
    if settings.rounds is not None and state.trained >= settings.rounds:
        return "end"
    if news:
        return "prepare"
    if settings.idle_seconds is not None and idle_seconds >= settings.idle_seconds:
        return "end"
    return "wait"


def complete(files: Sequence[LogFile], now: int, watermark_seconds: float) -> list[LogFile]:
    """The files of partitions in which nothing has changed since the watermark; without a time all are complete.

    Args:
        now: ns since 1970.
    """
    newest: dict[PurePosixPath, int] = {}
    for file in files:
        folder = PurePosixPath(file.path).parent
        newest[folder] = max(newest.get(folder, 0), file.modified or 0)
    limit = now - int(watermark_seconds * 1e9)
    return [file for file in files if newest[PurePosixPath(file.path).parent] <= limit]


def follow(config: Config, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Follow the log until a limit of `config.follow` is reached; the rounds, and where the newest export is.

    Raises:
        HseError: as `prepare`, `train` and `export`; or the settings are of no use here.
        PreemptedError: SIGTERM or Ctrl-C came.
    """
    following, began = _Following(config), time.perf_counter()
    with following.alone(), connect(config.cluster, config.metrics.port), _interrupts_end(), ending():
        before, idle_since, tries = following.state().trained, time.monotonic(), 0
        while True:
            state = following.state()
            step: Step = "prepare"
            try:
                news = following.news() if state.prepared == state.trained else []
                step = next_step(state, config.follow, news=bool(news), idle_seconds=time.monotonic() - idle_since)
                following.do(step, state, news)
                tries = 0
            except DataError as error:
                tries += 1
                # a fault of the first version is most often one of the settings, and somebody is there to mend it
                if step != "prepare" or not state.prepared or tries >= config.follow.tries:
                    raise
                log.warning("The log cannot be read (%d of follow.tries = %d): %s", tries, config.follow.tries, error)
                step = "wait"
            if step == "end":
                break
            if step == "wait":
                sleep(config.follow.poll_seconds)
                continue
            if step == "train" and came():  # after the last step, which is an end of training like any other
                raise PreemptedError("Stopped by SIGTERM at the end of a round.", cause="Run it again to go on.")
            idle_since = time.monotonic()
    latest = following.exports / LATEST
    return {
        "run": config.run.folder,
        "rounds": state.trained,
        "rounds_now": state.trained - before,
        "latest": str(latest) if latest.exists() else None,
        "seconds": time.perf_counter() - began,
    }


class _Following:
    """The folders of all rounds, and what is done to them."""

    def __init__(self, config: Config) -> None:
        refuse_features(config.data)
        if not config.data.extendable:
            raise ConfigError("A log is followed by extensions.", setting="data.extendable", value=False)
        if config.run.continues is not None:
            raise ConfigError(
                "The first round makes its own start.", setting="run.continues", value=config.run.continues
            )
        if config.train.teacher is not None:
            raise ConfigError(
                "No run is one of the data of all rounds.", setting="train.teacher", value=config.train.teacher
            )
        self.config, run = config, Path(config.run.folder)
        self.rounds, self.data = run / "rounds", Path(config.data.folder)
        self.exports = Path(config.export.folder) if config.export.folder else run / "exports"
        self.of_round(2)  # contradictions of later rounds are mistakes of now

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the folders for this process alone, without what a kill left in them.

        Raises:
            RunFolderError: another process follows there.
        """
        with ExitStack() as stack:
            for folder, setting in {
                self.data.resolve(): "data.folder",
                self.rounds.parent.resolve(): "run.folder",
            }.items():
                stack.enter_context(alone(folder, setting))
            for folder in (self.rounds, self.data, self.exports):
                sweep(folder)
            yield

    def of_round(self, number: int) -> Config:
        """The settings of a round."""
        raw, own = self.config.model_dump(mode="json"), name(number)
        raw["run"]["folder"], raw["data"]["folder"] = str(self.rounds / own), str(self.data / own)
        raw["export"]["folder"] = str(self.exports / own)
        raw["run"]["resume"] = "auto"  # a round that is under way goes on, and a later one begins
        if raw["checkpoint"]["folder"] is not None:
            raw["checkpoint"]["folder"] = f"{raw['checkpoint']['folder'].rstrip('/')}/{own}"
        if number > 1:
            raw["run"]["continues"] = str(self.rounds / name(number - 1))
            raw["train"]["epochs"] = self.config.follow.epochs or self.config.train.epochs
        config = parse_config(raw, f"of round {number}")
        if number == 1 or not RunFolder(config).started:
            return config
        # a round that was begun goes on as it is: the same folder in other words is none of another run
        begun = stored_config(config.run.folder)
        raw["run"]["continues"], raw["train"]["epochs"] = begun.run.continues, begun.train.epochs
        return parse_config(raw, f"of round {number}")

    def state(self) -> State:
        """What is there."""
        latest = self.exports / LATEST
        exported = read_record(latest, "name of the newest export").get("round") if latest.exists() else 0
        prepared, trained = newest(self.data, MANIFEST), newest(self.rounds, ROUND)
        if prepared < trained or (prepared > trained and not (self.data / name(trained + 1) / MANIFEST).exists()):
            # a round would prepare the whole log as if it were new
            raise RunFolderError(
                f"The {trained} rounds in {self.rounds} and the prepared versions in {self.data} do not fit.",
                cause="Remove both or neither.",
                setting="data.folder",
                value=self.config.data.folder,
            )
        if type(exported) is not int or not 0 <= exported <= trained:
            raise RunFolderError(
                f"{latest} does not say of which of the {trained} rounds the newest export is.", cause="Remove it."
            )
        return State(prepared, trained, exported)

    def news(self) -> list[LogFile]:
        """Files of complete partitions that the newest version has not read; none while no row is in them."""
        data = self.config.data
        files = find_files(data.source, data.format, data.schemes, required=False)
        files = complete(files, time.time_ns(), self.config.follow.watermark_seconds)
        last = newest(self.data, MANIFEST)
        found = Extended(self.data / name(last)).news(files) if last and files else files
        return found if any(has_rows(file, data) for file in found) else []

    def do(self, step: Step, state: State, news: list[LogFile]) -> None:
        """Take a step; there is nothing to do where it is to wait or to end."""
        keep = self.config.follow.keep
        match step:
            case "prepare":
                number = state.prepared + 1
                base = self.data / name(state.prepared) if state.prepared else None
                log.info("Round %d: %d new files", number, len(news))
                prepare(self.of_round(number), extend=base, files=news)
            case "train":
                number = state.trained + 1
                summary = train(self.of_round(number))
                write_json(self.rounds / name(number) / ROUND, {"round": number, "ended": time.time(), **summary})
                prune(self.rounds, number, keep, self.config.checkpoint)
                prune(self.data, number, keep)
            case "export":
                made = export(self.of_round(state.trained))
                answer = {**made, "folder": name(state.trained), "round": state.trained, "made": time.time()}
                write_json(self.exports / LATEST, answer)
                prune(self.exports, state.trained, keep)  # `latest.json` names the newest one


@contextmanager
def _interrupts_end() -> Iterator[None]:
    """Ctrl-C is SIGTERM for the block: a checkpoint, then an end. The second one is what it always was."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        before: Any = signal.signal(signal.SIGINT, end)
    except ValueError:  # not in the main thread, which alone hears of it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
