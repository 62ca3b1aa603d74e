"""SIGTERM: a checkpoint, an end with its own exit code, and a next run that goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hse_dist import preemption
from hse_dist.data.prepare import prepare
from hse_dist.errors import PreemptedError
from hse_dist.soak.compare import differences
from hse_dist.testing.runs import small_config, store_of
from hse_dist.train.driver import train
from hse_dist.train.step import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared histories of some 400 users over 150 items."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return folder


@pytest.mark.parametrize("after", [7, 10])
def test_a_run_that_sigterm_stopped_goes_on_bit_equal(tmp_path, data, after):
    straight, broken = (small_config(tmp_path / name, data, train__epochs=2) for name in ("a", "b"))
    train(straight)
    step = Trainer.step

    def terminated(self: Trainer, batch: Any, number: int, *following: Any) -> Any:
        if number == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number, *following)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PreemptedError, match=f"after step {after}, with"):
        patch.setattr(Trainer, "step", terminated)
        train(broken)
    assert signal.getsignal(signal.SIGTERM) is before and not preemption.asked()
    assert store_of(broken).latest().step == after
    summary = train(broken)
    assert summary["resumed_from"] == after and not summary["preempted"]
    assert differences(straight, broken) == []


def test_before_training_it_ends_at_once():
    with pytest.raises(PreemptedError, match="outside of training"), preemption.ending():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
    assert PreemptedError.exit_code == 143


def test_when_the_grace_time_is_over_the_process_ends():
    code = (
        "import os, signal, time; from hse_dist.preemption import stoppable\n"
        "with stoppable(0.5):\n  os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=25)
    assert done.returncode == 143 and time.monotonic() - began < 20
    assert "No checkpoint within" in done.stderr and "cluster.grace_seconds" in done.stderr


def test_workers_are_told_until_they_hear():
    heard: list[int] = []

    def tell() -> None:
        heard.append(1)
        if len(heard) == 1:
            raise ConnectionError("not there yet")

    with preemption.stoppable(30.0, tell):
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 10
        while len(heard) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert preemption.asked()
    assert len(heard) >= 2 and not preemption.asked()
