"""`hse-dist soak`: a run is disturbed again and again, and must end as one that nobody disturbed.

In: minutes and a seed. Out: faults by kind, recoveries, the seconds that they took, and whether every disturbed run
ended bit-equal to the clean one. Rounds follow each other until the time is over; the last one is let come to its end.
A round is a run in a folder of its own, whose driver is started again whenever a fault has ended it.
"""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hse_dist.config import Config, load_config
from hse_dist.data.prepared import Prepared
from hse_dist.errors import TrainingError
from hse_dist.preemption import ending
from hse_dist.processes import Process, descendants, kill, lives
from hse_dist.run_folder import RunFolder
from hse_dist.soak.compare import differences
from hse_dist.soak.schedule import FaultKind, schedule
from hse_dist.soak.settings import write_settings
from hse_dist.testing import faults

LIMIT_SECONDS = 240.0
"""For a run to begin, for a fault to happen, and to recover from it; after that the soak has failed."""
LOOK_SECONDS = 0.2
PAUSE_SECONDS = (0.2, 2.0)
"""Between a recovery and the next fault."""
DELAY_SECONDS, STOP_SECONDS = 6.0, 5.0
SECONDS_TO_END = 8.0
log = logging.getLogger(__name__)


@dataclass
class Record:
    """What happened so far."""

    faults: Counter[str] = field(default_factory=Counter)
    recoveries: int = 0
    seconds_lost: float = 0.0
    rounds: int = 0
    unequal: list[str] = field(default_factory=list)
    left_over: int = 0
    """Processes of a killed driver that did not end by themselves."""
    over: bool = False
    """Whether there are no more faults to come."""


Kinds = Iterator[tuple[FaultKind, random.Random]]


def soak(minutes: float, seed: int, folder: Path, kinds: Kinds | None = None) -> dict[str, Any]:
    """Disturb runs for so long; see the module.

    Args:
        seed: of the schedule.
        kinds: another schedule; where it ends, so do the faults.

    Raises:
        TrainingError: a run did not recover, or ended otherwise than its fault explains.
    """
    with ending():  # so that a driver under way ends, too
        return _soak(minutes, folder, kinds or schedule(seed)) | {"seed": seed}


def _soak(minutes: float, folder: Path, kinds: Kinds) -> dict[str, Any]:
    began, settings = time.monotonic(), write_settings(folder)
    clean = _config(settings, folder / "clean")
    with _Driver(settings, clean) as driver:
        driver.wait_for_end(3600.0)
        if driver.code != 0:
            raise TrainingError(f"The clean run ended with exit code {driver.code}; see {driver.log}.")
    clean_seconds = time.monotonic() - began
    log.info("The clean run took %.0f s", clean_seconds)
    record, end = Record(), time.monotonic() + 60 * minutes
    while time.monotonic() < end and not record.over:
        disturbed = _config(settings, folder / f"round-{record.rounds:02d}")
        _Round(settings, disturbed, record, end).run(kinds)
        unequal = differences(clean, disturbed)
        record.unequal += [f"round {record.rounds}: {what}" for what in unequal]
        record.rounds += 1
        log.info("Round %d is over: %s", record.rounds, ", ".join(unequal) or "equal to the clean run")
    return {
        "faults": dict(sorted(record.faults.items())),
        "faults_in_all": record.faults.total(),
        "recoveries": record.recoveries,
        "seconds_lost": round(record.seconds_lost, 1),
        "equal": not record.unequal,
        "differences": record.unequal,
        "rounds": record.rounds,
        "left_over": record.left_over,
        "clean_seconds": round(clean_seconds, 1),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "exit_code": int(bool(record.unequal)),
    }


def _config(settings: Path, folder: Path) -> Config:
    return load_config(settings, [f"run.folder={folder}"])


class _Driver:
    """A process that drives a run; within `with` it is ended if it has not ended by itself."""

    def __init__(self, settings: Path, config: Config) -> None:
        self.run, self.settings = RunFolder(config), settings
        self.log = self.run.path.with_name(f"{self.run.path.name}.log")
        self.code: int | None = None

    def __enter__(self) -> _Driver:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "hse_dist.testing.driver", "train", str(self.settings)]
        environment = {**os.environ, "RAY_ADDRESS": "", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [*words, f"run.folder={self.run.path}"], stdout=out, stderr=out, env=environment
            )
        self._family: set[int] = set()
        return self

    def __exit__(self, *_: Any) -> None:
        self.look()
        if self._process.poll() is None:
            self._process.kill()
            self.code = self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def look(self) -> bool:
        """Whether it still runs; remembers its processes."""
        self.code = self._process.poll()
        if self.code is None:
            self._family |= {one.pid for one in descendants(self.pid)}
        return self.code is None

    def wait_for_end(self, limit: float) -> None:
        end = time.monotonic() + limit
        while self.look():
            if time.monotonic() > end:
                raise TrainingError(f"The driver of {self.run.path} did not end within {limit:.0f} s; see {self.log}.")
            time.sleep(LOOK_SECONDS)

    def sweep(self) -> int:
        """Wait for the processes of a driver that is gone; how many had to be ended."""
        end = time.monotonic() + SECONDS_TO_END
        left = self._family
        while left and time.monotonic() < end:
            left = {pid for pid in left if lives(pid)}
            time.sleep(LOOK_SECONDS)
        for pid in left:
            log.warning("Process %d outlived its driver", pid)
        kill(left)
        return len(left)


class _Round:
    """One disturbed run."""

    def __init__(self, settings: Path, config: Config, record: Record, end: float) -> None:
        self.settings, self.config, self.record, self.end = settings, config, record, end
        self.run_folder = RunFolder(config)
        self.plan = self.run_folder.path / "faults"
        self.lost_since: float | None = None
        self.last: FaultKind | None = None

    def run(self, kinds: Kinds) -> None:
        """Start the driver again and again until the run is complete."""
        step = 0
        while True:
            with _Driver(self.settings, self.config) as driver:
                code = self._drive(driver, kinds, step)
            self.record.left_over += driver.sweep()
            step = self.step()  # workers may have trained on for a moment after their driver had gone
            if code == 0:
                self._recovered()
                return

    def step(self) -> int:
        """The last step that the run's metrics tell of."""
        try:
            return int(json.loads(self.run_folder.metrics.read_bytes().splitlines()[-1])["step"])
        except (OSError, IndexError, ValueError):
            return 0

    def _drive(self, driver: _Driver, kinds: Kinds, step: int) -> int:
        """Disturb this driver until it ends; its exit code."""
        while self._progresses(driver, step):
            self._recovered()
            chosen = next(kinds, None) if time.monotonic() < self.end else None
            if chosen is None:
                self.record.over = True
                driver.wait_for_end(3600.0)
                break
            kind, draw = chosen
            self._pause(driver, draw.uniform(*PAUSE_SECONDS))
            if not driver.look():
                break
            step = self.step()
            if not self._inject(driver, kind, draw):
                continue  # the driver had ended before
            self.record.faults[kind.name] += 1
            self.last = kind
            step = max(step, self.step())
            if kind.ends:
                driver.wait_for_end(LIMIT_SECONDS)
        assert driver.code is not None
        return self._explained(driver)

    def _explained(self, driver: _Driver) -> int:
        """Its exit code, which must be one that the last fault may lead to."""
        expected = (0, *self.last.ends) if self.last is not None and self.lost_since is not None else (0,)
        assert driver.code is not None
        if driver.code not in expected:
            cause = "by itself" if self.last is None else f"after {self.last.name}"
            raise TrainingError(f"The driver ended with exit code {driver.code} {cause}; see {driver.log}.")
        return driver.code

    def _pause(self, driver: _Driver, seconds: float) -> None:
        end = time.monotonic() + seconds
        while driver.look() and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)

    def _progresses(self, driver: _Driver, step: int) -> bool:
        """Wait until the run is further than it was; False where the driver has ended."""
        end = time.monotonic() + LIMIT_SECONDS
        while driver.look():
            if self.step() > step:
                return True
            if time.monotonic() > end:
                raise TrainingError(f"No step after {step} within {LIMIT_SECONDS:.0f} s; see {driver.log}.")
            time.sleep(LOOK_SECONDS)
        return False

    def _recovered(self) -> None:
        if self.lost_since is not None:
            seconds = time.monotonic() - self.lost_since
            self.record.recoveries += 1
            self.record.seconds_lost += seconds
            log.info("Recovered after %.1f s", seconds)
            self.lost_since = None

    def _inject(self, driver: _Driver, kind: FaultKind, draw: random.Random) -> bool:
        """Let the fault happen; False where the run was over before."""
        log.info("Fault %d in step %d or later: %s", self.record.faults.total() + 1, self.step(), kind.name)
        if kind.name in faults.INSIDE:
            return self._inside(driver, kind.name, draw)
        self.lost_since = time.monotonic()
        if kind.name.startswith("file_"):
            self._spoil(driver, kind.name.removeprefix("file_"), draw)
            return True
        return self._signal(driver, kind.name, draw)

    def _inside(self, driver: _Driver, kind: Any, draw: random.Random) -> bool:
        name = f"{self.record.faults.total():04d}-{kind}"
        rank = draw.randrange(self.config.cluster.fewest)
        fault = faults.Planted(name, kind, rank, self.step() + draw.randrange(1, 6), DELAY_SECONDS)
        faults.plant(self.plan, fault)
        end = time.monotonic() + LIMIT_SECONDS
        while not faults.happened(self.plan, fault):
            if not driver.look():
                return False
            if time.monotonic() > end:
                raise TrainingError(f"{kind} did not happen within {LIMIT_SECONDS:.0f} s; see {driver.log}.")
            time.sleep(LOOK_SECONDS)
        self.lost_since = time.monotonic()
        return True

    def _spoil(self, driver: _Driver, fault: Any, draw: random.Random) -> None:
        prepared = Prepared(self.config.data.folder)
        paths = sorted({path for path, _, _ in prepared.row_groups("train")})
        with faults.spoiled(prepared.folder / draw.choice(paths), fault):
            driver.wait_for_end(LIMIT_SECONDS)

    def _find(self, driver: _Driver, target: str) -> list[Process]:
        """Processes of a kind; a server may just be starting again. None where the driver has ended."""
        if target == "driver":
            return [Process(driver.pid, "driver")]
        end = time.monotonic() + LIMIT_SECONDS
        while driver.look() and time.monotonic() < end:
            found = faults.workers(driver.pid) if target == "worker" else faults.servers(driver.pid)
            if found:
                return found
            time.sleep(LOOK_SECONDS)
        return []

    def _signal(self, driver: _Driver, name: str, draw: random.Random) -> bool:
        action, _, target = name.partition("_")
        found = self._find(driver, target)
        if not found:
            self.lost_since = None
            return False
        chosen = draw.choice(sorted(found, key=lambda one: one.pid))
        if action == "terminate":
            faults.terminate(chosen.pid)
        elif action == "kill":
            faults.kill(chosen)
        else:
            faults.stop(chosen)
            if target == "driver":  # nobody but its own machine could know that it is stopped
                time.sleep(STOP_SECONDS)
                faults.go_on(chosen)
        return True
