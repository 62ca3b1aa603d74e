from __future__ import annotations

import numpy as np
import pytest

import hse_dist.evaluate.bootstrap as bootstrap
from hse_dist.errors import DataError
from hse_dist.evaluate.bootstrap import compare, paired_bootstrap
from hse_dist.evaluate.metrics import METRICS, write_users


def test_interval_is_that_of_the_normal_theory_over_seeds() -> None:
    generator = np.random.default_rng(1)
    theirs = [generator.normal(0, 5, n) for n in (400, 900)]
    ours = [t + generator.normal(shift, 0.3, len(t)) for t, shift in zip(theirs, (0.1, 0.3), strict=True)]
    found = paired_bootstrap(ours, theirs)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = np.mean([d.mean() for d in differences])  # each seed weighs the same, whatever its users
    error = np.sqrt(sum(d.var() / len(d) for d in differences)) / 2
    assert found.difference == pytest.approx(mean, abs=1e-12)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)
    assert found.users == 1300


def test_pairing_matters_and_a_level_widens() -> None:
    generator = np.random.default_rng(2)
    base = generator.normal(0, 1, 500)
    paired = paired_bootstrap([base + 0.01], [base], resamples=500)
    assert (paired.low, paired.high) == (pytest.approx(0.01), pytest.approx(0.01))
    shuffled = paired_bootstrap([base + 0.01], [generator.permutation(base)], resamples=500)
    assert shuffled.low < 0 < shuffled.high
    narrow = paired_bootstrap([base], [np.zeros(500)], level=0.5)
    wide = paired_bootstrap([base], [np.zeros(500)], level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_same_seed_same_interval_whatever_the_memory(monkeypatch) -> None:
    values = np.random.default_rng(3).random(37)
    first = paired_bootstrap([values], [values[::-1]], resamples=1000, seed=5)
    assert first == paired_bootstrap([values], [values[::-1]], resamples=1000, seed=5)
    assert first != paired_bootstrap([values], [values[::-1]], resamples=1000, seed=6)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_A_TIME", 100)
    assert first == paired_bootstrap([values], [values[::-1]], resamples=1000, seed=5)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([[1.0]], []), ([[1.0, 2.0]], [[1.0]]), ([[]], [[]])])
def test_values_that_do_not_pair_are_refused(ours, theirs) -> None:
    with pytest.raises(DataError, match="same users"):
        paired_bootstrap(ours, theirs)


def test_files_of_the_same_users_compare_and_others_do_not(tmp_path) -> None:
    for name, users, shift in (("a", [0, 1, 2], 0.5), ("b", [0, 1, 2], 0.0), ("c", [0, 1, 3], 0.0)):
        values = {metric: np.array([0.1, 0.2, 0.3]) + shift for metric in METRICS}
        write_users(tmp_path / f"{name}.parquet", {"user": np.array(users), **values})
    a, b, c = (tmp_path / f"{name}.parquet" for name in "abc")
    assert compare([a, a], [b, b], "recall@20").difference == pytest.approx(0.5)
    with pytest.raises(DataError, match="not about the same users"):
        compare([a], [c], "recall@20")
    with pytest.raises(DataError, match="one of each a seed"):
        compare([a, a], [b], "recall@20")
    with pytest.raises(DataError, match="no metric"):
        compare([a], [b], "recall@7")
