"""What all tests share: one thread each, loopback only, a Ray cluster for those who ask, and small configurations."""

from __future__ import annotations

import os

# before any import of NumPy, torch or Ray, which read these once
os.environ.update(
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    GLOO_SOCKET_IFNAME="lo",
    RAY_TRAIN_V2_ENABLED="1",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    # tests start their own clusters; one that the shell knows of is not theirs
    RAY_ADDRESS="",
)

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import settings

from hse_dist import progress
from hse_dist.config import Config, parse_config

ROOT = Path(__file__).resolve().parents[1]

# The ordinary tests draw the same examples every time: who changes a line of the README is not stopped by what other
# code does on one draw in a thousand. The slow ones draw anew (`make test-slow`), and so does HYPOTHESIS_PROFILE=anew.
settings.register_profile("same", derandomize=True)
settings.register_profile("anew")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """A local Ray cluster of four (logical) cores for all tests that ask for it; shut down at the end."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def gowalla() -> Path:
    """Gowalla's log under HSE_DATA, or under shared/data beside the checkout; where it is absent, a skip."""
    path = Path(os.environ.get("HSE_DATA") or ROOT.parent / "shared" / "data") / "gowalla" / "interactions.parquet"
    if not path.exists():
        pytest.skip(f"needs {path}; HSE_DATA names another folder of data sets")
    return path


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """`make_config(train={"epochs": 1}, …)`: a small configuration in this test's folder, in one process."""

    def make(**sections: dict[str, Any]) -> Config:
        small: dict[str, dict[str, Any]] = {
            "run": {"folder": str(tmp_path / "run")},
            "data": {"folder": str(tmp_path / "data")},
            "cluster": {"workers": 0},
        }
        for name, section in sections.items():
            small[name] = {**small.get(name, {}), **section}
        return parse_config(small, "of a test")

    return make


class Lines(logging.Handler):
    """Takes the lines of progress, and lets the test wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.came = Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.came.set()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.02)
    handler, level = Lines(), progress.log.level
    progress.log.addHandler(handler)
    progress.log.setLevel(logging.INFO)
    yield handler
    progress.log.removeHandler(handler)
    progress.log.setLevel(level)
