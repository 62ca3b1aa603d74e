"""Whole runs on a GPU, without Ray: they learn what a CPU's learn, go on where they were stopped, and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hse_dist.config import Config
from hse_dist.data.prepare import prepare
from hse_dist.errors import NumericError
from hse_dist.evaluate.driver import evaluate
from hse_dist.export.format import load_export
from hse_dist.export.writer import export
from hse_dist.testing.runs import journal_of, metrics_of, small_config
from hse_dist.train.driver import train
from hse_dist.train.step import Trainer

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
BLOCK = {"kind": "block", "block": 4}

CASES: dict[str, dict[str, Any]] = {
    "unit": {},
    "free, hse": {"model__row_norm": "free", "sparsity__start": "hse", "tables__item__dims": "items"},
    "free, local inverse": {
        "model__row_norm": "free", "sparsity__start": "local_inverse", "tables__item__dims": "items",
        "train__learning_rate": 0.02,
    },
    "adagrad": {"train__optimizer": "adagrad"},
    "many columns": {"model__compact_above": 20},
    "blocks": {"sparsity__structure": BLOCK, "tables__item__live": 8},
    "n of m": {"sparsity__structure": {"kind": "n_of_m", "n": 2, "m": 8}},
    "fisher": {"sparsity__drop": {"kind": "fisher"}},
    "momentum": {"sparsity__grow": {"kind": "momentum", "window": 3, "explore": 4}},
    "co-occurrence": {"sparsity__grow": {"kind": "co_occurrence", "window": 3, "explore": 4}},
    "strongest": {"model__user_entries": 12},
    "gradual": {"sparsity__schedule": {"interval": 6, "kind": "gradual", "live_start": 10, "repack_ratio": 1.1}},
    "in the host": {"tables__item__kernel": "fused_uvm"},
    "in the host, cached": {"tables__item__kernel": "fused_uvm_caching"},
    "dense": {"tables__item__kind": "dense"},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return folder


def config_of(folder: Path, data: Path, case: str, device: str) -> Config:
    changes = dict(CASES[case])
    if device == "cpu":
        changes.pop("tables__item__kernel", None)
    return small_config(folder, data, cluster__device=device, train__checkpoint_every=8, **changes)


def losses(config: Config) -> np.ndarray:
    return np.array([line["loss"] for line in metrics_of(config) if line["kind"] == "train"])


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_learns_what_a_cpu_learns(tmp_path, data, case):
    on_cpu = config_of(tmp_path / "cpu", data, case, "cpu")
    on_gpu = config_of(tmp_path / "gpu", data, case, DEVICE)
    train(on_cpu)
    train(on_gpu)
    # Steps differ by rounding alone, until a rewire chooses another one of two columns that are as good.
    np.testing.assert_allclose(losses(on_gpu)[0], losses(on_cpu)[0], rtol=1e-4)
    np.testing.assert_allclose(losses(on_gpu), losses(on_cpu), rtol=0.03)
    live = [[line["live"] for line in journal_of(config) if "live" in line] for config in (on_cpu, on_gpu)]
    assert live[0] == live[1]
    of_cpu, of_gpu = (evaluate(config)["ndcg@100"] for config in (on_cpu, on_gpu))
    assert of_gpu == pytest.approx(of_cpu, abs=0.02)
    folder = export(on_gpu)["folder"]
    assert load_export(folder).matrix.nnz > 0


@pytest.mark.parametrize("case", ["unit", "in the host, cached"])
def test_a_run_that_was_stopped_goes_on(tmp_path, data, case, monkeypatch):
    whole = config_of(tmp_path / "whole", data, case, DEVICE)
    train(whole)
    broken = config_of(tmp_path / "broken", data, case, DEVICE)
    step = Trainer.step

    def stop(self: Trainer, batch: Any, number: int, *following: Any) -> Any:
        if number == 20:
            raise NumericError("stopped")
        return step(self, batch, number, *following)

    with monkeypatch.context() as patch, pytest.raises(NumericError):
        patch.setattr(Trainer, "step", stop)
        train(broken)
    assert 0 < train(broken)["resumed_from"] < 20
    np.testing.assert_allclose(losses(broken), losses(whole), rtol=1e-3)
