"""Where the numbers of a run go: the same ones everywhere, and no sink that cannot be there."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from hse_dist.config import MetricsSettings
from hse_dist.errors import ConfigError
from hse_dist.testing.runs import small_config
from hse_dist.train import sinks
from hse_dist.train.series import SERIES, STEP_SECONDS
from hse_dist.train.sinks import Mlflow, Prometheus, Run, open_sinks

ROOT = Path(__file__).resolve().parents[2]
WAIT = 120.0
MAY_BE_NOTHING = ("hse_restored_entries", "hse_skipped_steps", "hse_bad_files")
"""Counters that a good run need not show: Ray has no series before the first event."""


@pytest.fixture
def shown(shared_ray: None) -> Any:
    """What Ray's metrics were given: (name, value, tags), as they came. The endpoint itself is below, in a run."""
    from ray.util import metrics

    found: list[tuple[str, float, dict[str, str]]] = []
    with pytest.MonkeyPatch.context() as patch:
        record = metrics.Metric._record

        def note(self: Any, value: float, tags: dict[str, str] | None = None) -> None:
            record(self, value, tags)
            found.append((self.info["name"], value, dict(tags or {})))

        patch.setattr(metrics.Metric, "_record", note)
        yield found


@pytest.mark.ray
def test_every_series_is_of_a_value_and_counters_go_on_where_the_run_was(tmp_path: Path, shown: Any) -> None:
    before = [{"kind": "train", "step": 10, "wire_bytes": {"ids": 100, "values": 5}, "skipped": 1}]
    sink = Prometheus(Run(tmp_path, 10, before))
    sink.write("train", 20, {"loss": None, "wire_bytes": {"ids": 160, "values": 5}, "skipped": 3, "note": "none"})
    sink.write("rewire", 20, {"dropped": 7, "grown": 0})
    sink.observe_step(0.25)
    run = {"run": str(tmp_path)}
    assert shown == [
        ("hse_step", 20, run),
        ("hse_wire_bytes", 60, run | {"sent": "ids"}),
        ("hse_skipped_steps", 2, run),
        ("hse_rewires", 1, run),
        ("hse_dropped_entries", 7, run),
        (STEP_SECONDS, 0.25, run),
    ]


def test_mlflow_is_refused_at_once_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MetricsSettings(sinks=("mlflow",))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed.*hse-dist\[mlflow\].*metrics\.sinks = \['mlflow'\]"):
        open_sinks(settings, Run(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"tracking server.*metrics\.mlflow_uri"):
        open_sinks(settings, Run(tmp_path))


def test_mlflow_goes_on_with_its_run_and_a_server_that_is_gone_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    settings = MetricsSettings(sinks=("mlflow",), mlflow_uri=f"file:{tmp_path}/server")
    run = Run(tmp_path, settings={"train.epochs": 3})
    for step in (-1, 10):
        sink = Mlflow(settings, Run(tmp_path, step, settings=run.settings))
        sink.write("validate", step + 10, {"ndcg@100": 0.5, "parts": {"a": 1}})
        sink.close()
    client = mlflow.MlflowClient(settings.mlflow_uri)
    name = json.loads((tmp_path / "mlflow.json").read_text())["run"]
    stored = client.get_run(name)
    assert stored.data.params == {"train.epochs": "3"} and stored.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(name, "validate/ndcg_at_100")]
    assert steps == [9, 20] and stored.data.metrics["validate/parts/a"] == 1

    sink = Mlflow(settings, Run(tmp_path, 20))

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(sink._client, "log_batch", gone)
    with caplog.at_level(logging.WARNING, logger=sinks.log.name):
        sink.write("train", 30, {"loss": 1.0})
        sink.write("train", 40, {"loss": 1.0})
        sink.close()
    assert caplog.text.count("nobody there") == 1


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def scrape(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def listening(port: int) -> set[str]:
    """Addresses on which somebody listens at a port, as the system writes them."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[1].split(":")[0] for line in lines[1:] if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_can_be_scraped_on_loopback_alone_while_it_trains(tmp_path: Path) -> None:
    port = free_port()
    config = small_config(
        tmp_path / "run", tmp_path / "data", train__epochs=2000, cluster__workers=2, metrics__port=port
    )
    raw = config.model_dump(mode="json", exclude_none=True)
    path = tmp_path / "run.toml"
    path.write_text(_toml(raw), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_metrics_report_interval_ms": "500"}
    environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")  # what a user has not set
    command = [sys.executable, "-m", "hse_dist.cli", "train", str(path)]
    wanted = {series.exported for series in SERIES if series.name not in MAY_BE_NOTHING}
    wanted.add(f"ray_{STEP_SECONDS}_bucket")
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            found, text, until = set[str](), "", time.monotonic() + WAIT
            while not wanted <= found and job.poll() is None and time.monotonic() < until:
                time.sleep(0.5)
                text = scrape(port)
                found = set(re.findall(r"^(ray_hse_\w+)\{", text, re.MULTILINE))
            addresses = listening(port)
        finally:
            job.terminate()
            job.wait(WAIT)
    said = (tmp_path / "log").read_text()
    assert wanted <= found, f"missing: {wanted - found}\n{said}"
    assert addresses == {"0100007F"}, "the endpoint is not on 127.0.0.1 alone"
    assert f'run="{tmp_path / "run"}"' in text and f"http://127.0.0.1:{port}/metrics" in said
    last = max(json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (step,) = re.findall(r"^ray_hse_step\{.*\} (\S+)$", text, re.MULTILINE)
    assert 0 < float(step) <= last


def _toml(raw: dict[str, Any], prefix: str = "") -> str:
    """Nested tables as TOML; JSON's values are TOML's."""
    own = [f"{name} = {json.dumps(value)}" for name, value in raw.items() if not isinstance(value, dict)]
    parts = [_toml(value, f"{prefix}{name}.") for name, value in raw.items() if isinstance(value, dict)]
    return "\n".join([f"[{prefix[:-1]}]" if prefix else "", *own, *parts])
