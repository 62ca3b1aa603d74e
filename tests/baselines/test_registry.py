"""Names, budgets and answers that all baselines share."""

from __future__ import annotations

import sys

import pytest

import hse_dist.baselines.elsa as elsa
from hse_dist.baselines.registry import BASELINES, evaluate_baseline
from hse_dist.cli.parser import BASELINES as NAMES
from hse_dist.errors import ConfigError
from hse_dist.evaluate.metrics import METRICS
from hse_dist.testing.folder import Folder


@pytest.fixture(scope="module")
def folder() -> Folder:
    return Folder()


def test_the_command_line_knows_every_name() -> None:
    assert tuple(BASELINES) == NAMES
    assert all(name == baseline.name and baseline.what and baseline.source for name, baseline in BASELINES.items())


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_keeps_to_its_budget_and_beats_chance(folder, monkeypatch, name: str) -> None:
    if name == "als":
        pytest.importorskip("implicit", exc_type=ImportError)
    monkeypatch.setattr(elsa, "EPOCHS", 6)
    monkeypatch.setattr(elsa, "PRUNE", 3)
    result, users = evaluate_baseline(name, folder, "test", bytes_per_item=64)
    if BASELINES[name].sized:
        assert 32 < result["bytes_per_item"] <= 64
        with pytest.raises(ConfigError, match=f"{name}' needs a budget of bytes"):
            evaluate_baseline(name, folder, "test")
    assert result["ndcg@100"] > 0.25 and result["users"] == 45 and set(users) == {"user", *METRICS}
    assert result["slots_per_live"] == 1.0 and result["seconds"] > 0


def test_unknown_names_are_refused(folder) -> None:
    with pytest.raises(ConfigError, match=r"no baseline 'svd'\. There are popularity, item-knn"):
        evaluate_baseline("svd", folder, "test")


def test_als_names_the_extra_that_it_lacks(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit", None)
    monkeypatch.setitem(sys.modules, "implicit.als", None)
    with pytest.raises(ConfigError, match=r"pip install 'hse-dist\[als\]'"):
        evaluate_baseline("als", folder, "test", bytes_per_item=64)
