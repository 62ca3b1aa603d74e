"""Where the numbers of a run go beside `metrics.jsonl`: TensorBoard, Ray's Prometheus endpoint, MLflow.

In: the lines of rank 0, one at a time. Out: the same numbers elsewhere. A sink that fails while the run goes on is
warned of and left alone: no training ends for its metrics. What is missing at the start is refused there.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hse_dist.config import MetricsSettings
from hse_dist.errors import ConfigError
from hse_dist.files import read_json, write_json
from hse_dist.tasks import ray_is_running
from hse_dist.train.series import SERIES, STEP_BUCKETS, STEP_SECONDS, Series

Values = Mapping[str, Any]
SECONDS_TO_FLUSH = 30.0
"""At the end of a run, for what MLflow's server has not taken yet."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a sink knows of its run.

    Attributes:
        folder: of the run.
        step: of the checkpoint that it goes on from; -1 for a new one.
        lines: of `metrics.jsonl` up to there.
        settings: of the run as flat names, for those who show them.
    """

    folder: Path
    step: int = -1
    lines: Sequence[dict[str, Any]] = ()
    settings: Values | None = None


class Sink(Protocol):
    """Takes every line."""

    def write(self, kind: str, step: int, values: Values) -> None:
        """An event; a value may be a number, a dictionary of numbers, or something that the sink passes over."""

    def observe_step(self, seconds: float) -> None:
        """How long a step took."""

    def close(self) -> None:
        """Bring what is left to where it goes."""


def numbers(values: Values) -> Iterator[tuple[str, str, float]]:
    """(name, part, number) of an event; the part is empty for a value that has none. Truth values are no numbers."""
    for name, value in values.items():
        for part, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield name, part, number


def check_sinks(settings: MetricsSettings) -> None:
    """Refuse a sink that cannot be there.

    Raises:
        ConfigError: MLflow is not installed, or nobody says where its server is.
    """
    if "mlflow" not in settings.sinks:
        return
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "MLflow is not installed here.",
            cause="Install it with pip install 'hse-dist[mlflow]', or leave it out.",
            setting="metrics.sinks",
            value=list(settings.sinks),
        )
    if not (settings.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ConfigError(
            "Nobody says where MLflow's tracking server is.",
            cause="Name it here or in MLFLOW_TRACKING_URI.",
            setting="metrics.mlflow_uri",
            value=settings.mlflow_uri,
        )


def open_sinks(settings: MetricsSettings, run: Run) -> list[Sink]:
    """The sinks that the settings name, in their order; Prometheus only where Ray runs.

    Raises:
        ConfigError: see `check_sinks`; or MLflow's server does not take a run.
    """
    check_sinks(settings)
    found: list[Sink] = []
    for name in dict.fromkeys(settings.sinks):
        if name == "tensorboard":
            found.append(TensorBoard(run))
        elif name == "mlflow":
            found.append(Mlflow(settings, run))
        elif ray_is_running():
            found.append(Prometheus(run))
    return found


class TensorBoard:
    """Scalars `KIND/NAME` and `KIND/NAME/PART` in `tensorboard` in the run folder."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def write(self, kind: str, step: int, values: Values) -> None:
        for name, part, number in numbers(values):
            self._writer.add_scalar(f"{kind}/{name}" + (f"/{part}" if part else ""), number, step)

    def observe_step(self, seconds: float) -> None:
        """Steps by themselves are no scalars: there are too many."""

    def close(self) -> None:
        self._writer.close()


class Prometheus:
    """The series of `series.py` at the endpoint of the node that this process runs on; Ray collects them every few
    seconds (`RAY_metrics_report_interval_ms`, 10 000)."""

    def __init__(self, run: Run) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._tags = {"run": str(run.folder)}
        self._series: list[tuple[Series, Any]] = []
        for series in SERIES:
            keys = ("run", series.part) if series.part else ("run",)
            make = Gauge if series.type == "gauge" else Counter
            self._series.append((series, make(series.name, series.what, keys)))
        what = "seconds of a step of rank 0"
        self._steps = Histogram(STEP_SECONDS, what, list(STEP_BUCKETS), ("run",))
        # counters begin at 0 in every process: what a run had sent before is not sent again
        self._before: dict[tuple[str, str, str], float] = {}
        for line in run.lines:
            self._before |= {(line["kind"], name, part): number for name, part, number in numbers(line)}

    def write(self, kind: str, step: int, values: Values) -> None:
        given = {(name, part): number for name, part, number in numbers({"step": step, **values})}
        for series, metric in self._series:
            if series.kind != kind:
                continue
            if series.type == "events":
                metric.inc(1, self._tags)
                continue
            for (name, part), number in given.items():
                if name == series.value:
                    self._show(series, metric, part, number)

    def _show(self, series: Series, metric: Any, part: str, number: float) -> None:
        tags = self._tags | ({series.part: part} if series.part else {})
        if series.type == "gauge":
            metric.set(number, tags)
            return
        key = (series.kind, series.value, part)
        more = number - self._before.get(key, 0.0) if series.type == "running" else number
        self._before[key] = number
        if more > 0:  # Ray refuses to add nothing
            metric.inc(more, tags)

    def observe_step(self, seconds: float) -> None:
        self._steps.observe(seconds, self._tags)

    def close(self) -> None:
        """Ray collects until the process ends."""


class Mlflow:
    """One MLflow run, named by the run folder, which a resumed run goes on with: its settings as parameters, numbers as
    `KIND/NAME/PART`. A thread sends them, so that a slow server holds up no step."""

    def __init__(self, settings: MetricsSettings, run: Run) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        uri = settings.mlflow_uri or os.environ["MLFLOW_TRACKING_URI"]
        remembered = run.folder / "mlflow.json"
        try:
            self._client = MlflowClient(tracking_uri=uri)
            if run.step >= 0 and remembered.exists():
                self._run = read_json(remembered, "name of the MLflow run")["run"]
                self._client.update_run(self._run, status="RUNNING")
            else:
                experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "hse-dist")
                found = self._client.get_experiment_by_name(experiment)
                place = found.experiment_id if found else self._client.create_experiment(experiment)
                self._run = self._client.create_run(place, run_name=str(run.folder)).info.run_id
                write_json(remembered, {"run": self._run})
                params = [Param(name, str(value)) for name, value in (run.settings or {}).items()]
                for first in range(0, len(params), 100):  # no more at once
                    self._client.log_batch(self._run, params=params[first : first + 100])
        except MlflowException as error:
            raise ConfigError(
                f"MLflow's server does not take a run: {error}", setting="metrics.mlflow_uri", value=uri
            ) from None
        self._queue: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="MLflow", daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        now, batch = int(1000 * time.time()), []
        for name, part, number in numbers(values):
            path = f"{kind}/{name}" + (f"/{part}" if part else "")
            batch.append(Metric(path.replace("@", "_at_"), float(number), now, step))  # MLflow knows no @ in a name
        self._queue.put(batch)

    def _send(self) -> None:
        failed = False
        while (batch := self._queue.get()) is not None:
            try:
                self._client.log_batch(self._run, metrics=batch)
            except Exception as error:
                if not failed:
                    log.warning("MLflow's server does not take the metrics, the run goes on: %s", error)
                failed = True

    def observe_step(self, seconds: float) -> None:
        """Steps by themselves are no metrics there: there are too many."""

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(SECONDS_TO_FLUSH)
        if self._thread.is_alive():
            log.warning("MLflow's server has not taken the last metrics within %.0f s.", SECONDS_TO_FLUSH)
            return
        try:
            self._client.set_terminated(self._run)
        except Exception as error:
            log.warning("MLflow's server was not told of the end of the run: %s", error)
