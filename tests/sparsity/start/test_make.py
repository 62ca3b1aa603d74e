"""Starts end to end: what they promise to training, whoever makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as ss

from hse_dist.config import MAX_DIMS, Config, parse_config
from hse_dist.errors import ConfigError, NumericError
from hse_dist.sparsity.budget import row_lengths
from hse_dist.sparsity.selection import RadixSelection
from hse_dist.sparsity.start import StartFolder, make_start

KINDS = ("local_inverse", "hse", "random")


def config(start: str, *, live: int = 8, budget: dict[str, Any] | None = None, **own: Any) -> Config:
    """A configuration of a start; `own` are the start's settings, or the table's for the random one."""
    table: dict[str, Any] = {"live": live}
    sparsity: dict[str, Any] = {"start": start, "budget": {"ceiling": 20, **(budget or {})}}
    if start == "random":
        table |= own
    else:
        sparsity[start] = {"regularization": 5.0, "history_power": 0.0, "dropout": 0.0, **own}
    return parse_config({"tables": {"item": table}, "sparsity": sparsity}, "test")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def dense(start: StartFolder) -> np.ndarray:
    offsets, columns, values = start.entries()
    return ss.csr_matrix((values.astype(np.float64), columns, offsets), shape=(start.rows, start.dims)).toarray()


def scores(start: StartFolder, x: np.ndarray) -> np.ndarray:
    """g_j · (u · A_j - [j in x] · ‖A_j‖²)."""
    table = dense(start)
    return ((x @ table) @ table.T - x * (table**2).sum(1)) * start.gains()


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_is_exact_in_number_and_scale(histories, small_ranges: int, tmp_path: Path, kind: str) -> None:
    start = make_start(config(kind, live=4), histories, tmp_path / "start")
    assert (start.rows, start.dims, start.live_entries) == (50, 50, 4 * 50)
    live = start.live()
    assert live.sum() == 200 and live.min() >= 1 and live.max() <= 20
    offsets, columns, values = start.entries()
    rows = np.repeat(np.arange(50), np.diff(offsets))
    assert (np.diff(rows * 50 + columns) > 0).all() and columns.min() >= 0 and columns.max() < 50
    np.testing.assert_allclose(np.sqrt(np.bincount(rows, values.astype(float) ** 2)).mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(np.abs(start.gains()).mean(), 1, rtol=1e-5)
    assert (np.sign(start.gains()) == (-1 if kind == "local_inverse" else 1)).all()
    assert {path.name for path in start.folder.iterdir()} == {"manifest.json", "rows", "entries"}
    assert len(start.manifest["ranges"]) == len(list((start.folder / "entries").iterdir())) == 8


def test_an_uncut_exact_start_scores_like_ease(histories, ease, tmp_path: Path) -> None:
    start = make_start(config("hse", live=50, budget={"ceiling": 50}), histories, tmp_path / "start")
    x = histories.matrix("train").toarray().astype(np.float64)
    expected, found = x @ ease(x, 5.0), scores(start, x)
    factor = start.manifest["value_scale"] ** 2 * start.manifest["gain_scale"]
    np.testing.assert_allclose(found, expected * factor, rtol=1e-4, atol=1e-5)


def test_a_full_local_inverse_scores_like_ease(histories, ease, tmp_path: Path) -> None:
    histories = type(histories)(histories.matrix("train")[:, :12])
    settings = config("local_inverse", live=12, budget={"ceiling": 12}, entries=12)
    start = make_start(settings, histories, tmp_path / "start")
    x = histories.matrix("train").toarray().astype(np.float64)
    found = scores(start, x) / (start.manifest["value_scale"] ** 2 * start.manifest["gain_scale"])
    np.testing.assert_allclose(found, x @ ease(x, 5.0), rtol=1e-3, atol=1e-4)
    assert start.live_entries == 12 * 13 // 2  # fewer than the budget: all of the triangle is kept


def gram_of(histories, regularization: float) -> np.ndarray:
    x = histories.matrix("train").toarray().astype(np.float64)
    return x.T @ x + regularization * np.eye(x.shape[1])


def test_refit_values_are_the_best_on_what_the_cut_left(histories, small_ranges: int, tmp_path: Path) -> None:
    cut = make_start(config("local_inverse", live=4, refit=False), histories, tmp_path / "cut")
    refit = make_start(config("local_inverse", live=4), histories, tmp_path / "refit")
    gram, before, after = gram_of(histories, 5.0), dense(cut).T, dense(refit).T / refit.manifest["value_scale"]
    assert refit.live_entries == cut.live_entries == 200
    same = 0
    for i in range(50):
        pattern = sorted({*np.flatnonzero(before[i]), i})
        solution = np.linalg.solve(gram[np.ix_(pattern, pattern)], np.eye(len(pattern))[-1])
        left = np.flatnonzero(after[i])
        assert set(left) <= set(pattern)  # an item that the cut took from its own pattern came back for the solve
        expected = np.zeros(50)
        expected[pattern] = solution / np.sqrt(solution[-1])
        np.testing.assert_allclose(after[i, left], expected[left], rtol=1e-4)
        same += len(left) == np.count_nonzero(before[i])
    assert same >= 40


@pytest.mark.parametrize(("kind", "entries"), [("local_inverse", {"entries": 12}), ("hse", {})])
def test_weighted_histories_and_dropout_score_like_weighted_ease(
    histories, tmp_path: Path, kind: str, entries: dict[str, int]
) -> None:
    histories = type(histories)(histories.matrix("train")[:, :12])
    own = {**entries, "history_power": 0.5, "dropout": 0.2}
    start = make_start(config(kind, live=12, budget={"ceiling": 12}, **own), histories, tmp_path / "start")
    x = histories.matrix("train").toarray().astype(np.float64)
    weight = np.maximum(x.sum(1), 1) ** -0.5
    weight *= x.sum() / (weight @ x.sum(1))
    counts = weight @ x
    inverse = np.linalg.inv((x.T * weight) @ x + np.diag(5.0 + 0.25 * counts))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)
    # whole numbers of 1/64 stand for the weights
    factor = start.manifest["value_scale"] ** 2 * start.manifest["gain_scale"]
    np.testing.assert_allclose(scores(start, x) / factor, x @ expected, rtol=0.05, atol=5e-3)


def test_the_judge_chooses_the_regularization(histories, small_ranges: int, tmp_path: Path) -> None:
    worths = {1.0: 0.3, 5.0: 0.5, 20.0: 0.5, 80.0: 0.1}
    judged = []

    def judge(start: StartFolder) -> float:
        alone = make_start(config("local_inverse", regularization=order[len(judged)]), histories, tmp_path / "alone")
        for one, other in zip(start.entries(), alone.entries(), strict=True):
            np.testing.assert_array_equal(one, other)
        judged.append(order[len(judged)])
        return worths[judged[-1]]

    order = [80.0, 5.0, 20.0, 1.0]
    start = make_start(config("local_inverse", regularization=order), histories, tmp_path / "s", judge=judge)
    assert judged == order and start.manifest["regularization"] == 5.0
    assert start.manifest["validation"] == {"80": 0.1, "5": 0.5, "20": 0.5, "1": 0.3}
    assert {path.name for path in start.folder.iterdir()} == {"manifest.json", "rows", "entries"}
    best = make_start(config("local_inverse", regularization=5.0), histories, tmp_path / "best")
    found = content(start.folder)
    assert all(found[name] == data for name, data in content(best.folder).items() if name != "manifest.json")
    assert (
        make_start(config("local_inverse", regularization=order), histories, tmp_path / "s").rows == 50
    )  # it is there


def test_the_judge_chooses_the_regularization_of_the_exact_start(histories, tmp_path: Path) -> None:
    worths = iter([0.3, 0.5, 0.4])
    several = config("hse", regularization=[1.0, 5.0, 20.0])
    start = make_start(several, histories, tmp_path / "s", judge=lambda _: next(worths))
    assert start.manifest["regularization"] == 5.0
    alone = content(make_start(config("hse"), histories, tmp_path / "alone").folder)
    assert all(alone[name] == data for name, data in content(start.folder).items() if name != "manifest.json")


def test_a_row_budget_keeps_each_rows_strongest(histories, tmp_path: Path) -> None:
    start = make_start(config("hse", live=5, budget={"kind": "row"}), histories, tmp_path / "start")
    full = dense(make_start(config("hse", live=50, budget={"ceiling": 50}), histories, tmp_path / "full"))
    np.testing.assert_array_equal(start.live(), np.minimum(np.count_nonzero(full, axis=1), 5))
    for row, whole in zip(dense(start), full, strict=True):
        assert np.abs(whole[row == 0]).max() <= np.abs(whole[row != 0]).min()


def test_a_budget_by_popularity_gives_each_row_its_number(histories, tmp_path: Path) -> None:
    budget = {"kind": "popularity", "power": 0.7, "floor": 2, "ceiling": 30}
    start = make_start(config("hse", live=5, budget=budget), histories, tmp_path / "start")
    full = dense(make_start(config("hse", live=50, budget={"ceiling": 50}), histories, tmp_path / "full"))
    had = np.minimum(np.count_nonzero(full, axis=1), 30)
    expected = row_lengths(histories.counts(), total=5 * 50, power=0.7, floor=2, ceiling=had)
    np.testing.assert_array_equal(start.live(), expected)
    assert start.live_entries == 5 * 50 and expected.max() > 1.5 * 5
    for row, whole in zip(dense(start), full, strict=True):
        assert np.abs(whole[row == 0]).max() <= np.abs(whole[row != 0]).min()
    random = make_start(config("random", dims=64, budget=budget, live=5), histories, tmp_path / "random").live()
    np.testing.assert_array_equal(random, row_lengths(histories.counts(), total=250, power=0.7, floor=2, ceiling=30))


def test_unit_rows(histories, tmp_path: Path) -> None:
    raw = config("hse", live=4).model_dump()
    raw["model"]["row_norm"] = "unit"
    start = make_start(parse_config(raw, "test"), histories, tmp_path / "start")
    np.testing.assert_allclose((dense(start) ** 2).sum(1), 1, rtol=1e-5)
    assert (start.gains() == 1).all()


def test_random_rows_follow_popularity(histories, tmp_path: Path) -> None:
    settings = config("random", dims=64, capacity_power=0.5, budget={"floor": 2})
    live = make_start(settings, histories, tmp_path / "start").live()
    assert live.sum() == 8 * 50 and live[0] > 12 > 4 > live[-1] >= 2


@pytest.mark.parametrize("kind", ["local_inverse", "random"])
def test_the_number_of_tasks_changes_no_byte(histories, small_ranges: int, tmp_path: Path, kind: str) -> None:
    found = []
    for tasks in (1, 3, 50):  # with the refit
        raw = config(kind).model_dump()
        raw["sparsity"]["local_inverse"]["tasks"] = tasks
        found.append(content(make_start(parse_config(raw, "test"), histories, tmp_path / str(tasks)).folder))
    assert found[0] == found[1] == found[2] and len(found[0]) == 17


def test_tasks_and_memory_change_no_byte_of_a_chosen_sampled_start(
    histories, small_ranges: int, tmp_path: Path
) -> None:
    own = {"regularization": [0.01, 0.1], "history_power": 0.5, "max_history": 3, "entries": 20}
    found = []
    for tasks, memory in ((1, 1), (7, 64)):
        settings = config("local_inverse", live=4, **own, tasks=tasks, memory_mb=memory)
        start = make_start(settings, histories, tmp_path / str(tasks), judge=lambda one: one.live_entries - one.rows)
        assert start.manifest["sampled_histories"] > 50 and start.manifest["shifted_patterns"] > 0
        found.append(content(start.folder))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "own", [{"pattern": "two_hop"}, {"pattern": "greedy", "candidates": 16}, {"cuts": 2, "refine": 1}]
)
def test_tasks_and_memory_change_no_byte_of_other_patterns(
    histories, small_ranges: int, tmp_path: Path, own: dict[str, Any]
) -> None:
    found = []
    for tasks, memory in ((1, 1), (7, 64)):
        settings = config("local_inverse", live=4, entries=9, **own, tasks=tasks, memory_mb=memory)
        start = make_start(settings, histories, tmp_path / str(tasks))
        assert start.live_entries == 200
        found.append(content(start.folder))
    assert found[0] == found[1]
    usual = make_start(config("local_inverse", live=4, entries=9), histories, tmp_path / "usual")
    assert not np.array_equal(start.entries()[1], usual.entries()[1])


def test_cuts_fall_to_the_budget(histories, small_ranges: int, tmp_path: Path) -> None:
    wide = make_start(config("local_inverse", live=8, budget={"ceiling": 40}), histories, tmp_path / "wide")
    twice = make_start(config("local_inverse", live=4, cuts=2), histories, tmp_path / "twice")
    assert twice.live_entries == 200
    left = dense(wide) != 0
    assert left[dense(twice) != 0].mean() > 0.98  # of what the first cut left; the refit brings back items' own entries


def test_gains_are_divided_by_a_power_of_the_counts(histories, small_ranges: int, tmp_path: Path) -> None:
    usual = make_start(config("local_inverse", live=4), histories, tmp_path / "usual")
    raised = make_start(config("local_inverse", live=4, gain_power=0.25), histories, tmp_path / "raised")
    np.testing.assert_array_equal(dense(raised), dense(usual))
    expected = usual.gains() / (1.0 + histories.counts()) ** 0.25
    np.testing.assert_allclose(raised.gains(), expected / np.abs(expected).mean(), rtol=1e-5)


def test_refinement_of_sampled_blocks_and_of_two_hops_ends_exact_in_number(histories, tmp_path: Path) -> None:
    raw = config("local_inverse", live=8, refine=1, max_history=4, history_power=0.5, pattern="two_hop").model_dump()
    raw["sparsity"]["structure"] = {"kind": "block", "block": 4}
    start = make_start(parse_config(raw, "test"), histories, tmp_path / "start")
    assert start.live_entries == 400 and start.manifest["sampled_histories"] > 50


@pytest.mark.ray
def test_ray_tasks_change_no_byte(shared_ray, many_histories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config("local_inverse", entries=16)
    together = content(make_start(settings, many_histories, tmp_path / "ray").folder)
    monkeypatch.setattr("hse_dist.tasks.ray_is_running", lambda: False)
    alone = content(make_start(settings, many_histories, tmp_path / "alone").folder)
    assert together == alone and len(alone) == 5


def test_the_server_decides_the_cut(histories, small_ranges: int, tmp_path: Path) -> None:
    asked = []

    class Watched(RadixSelection):
        def feed(self, histograms: np.ndarray) -> Any:
            asked.append((self.query.round, histograms.shape))
            return super().feed(histograms)

    watched = make_start(config("local_inverse", live=3), histories, tmp_path / "watched", Watched)
    assert asked == 2 * [(0, (8, 2048)), (1, (8, 2048)), (2, (8, 1024))]  # before and after the refit
    plain = make_start(config("local_inverse", live=3), histories, tmp_path / "plain")
    assert content(watched.folder) == content(plain.folder)


def test_a_start_is_made_once(histories, tmp_path: Path) -> None:
    folder = make_start(config("random"), histories, tmp_path / "start").folder
    made = (folder / "manifest.json").stat().st_mtime_ns
    make_start(config("random"), histories, folder)
    assert (folder / "manifest.json").stat().st_mtime_ns == made
    assert make_start(config("random", live=9), histories, folder).live_entries == 9 * 50
    histories.manifest["interactions"] += 1
    assert make_start(config("random", live=9), histories, folder).manifest["settings"]["data"]
    assert (folder / "manifest.json").stat().st_mtime_ns != made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config("local_inverse", live=20), r"10 items.*tables\.item\.live = 20"),
        (config("hse", live=4, max_items=9), r"items × items.*sparsity\.hse\.max_items = 9"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_refused(histories, tmp_path: Path, settings: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_start(settings, type(histories)(histories.matrix("train")[:, :10]), tmp_path / "start")
    assert not list(tmp_path.iterdir())


def test_a_column_an_item_ends_where_float32_counts_no_further(histories, tmp_path: Path) -> None:
    histories.items = MAX_DIMS + 1
    with pytest.raises(ConfigError, match=r"16777216 columns.*tables\.item\.dims = 'items'"):
        make_start(config("random"), histories, tmp_path / "start")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_start_that_fails(tmp_path: Path, histories) -> None:
    twins = type(histories)(ss.csr_matrix(np.ones((4, 2), np.float32)))
    with pytest.raises(NumericError, match="item row 1"):
        make_start(config("local_inverse", live=1, regularization=1e-300), twins, tmp_path / "start")
    assert not list(tmp_path.iterdir())


def test_long_histories_are_sampled_and_the_manifest_says_so(histories, tmp_path: Path) -> None:
    exact = make_start(config("local_inverse"), histories, tmp_path / "exact")
    sampled = make_start(config("local_inverse", max_history=5), histories, tmp_path / "sampled")
    long = int(np.count_nonzero(histories.matrix("train").sum(1) > 5))
    assert exact.manifest["sampled_histories"] == exact.manifest["shifted_patterns"] == 0
    assert sampled.manifest["sampled_histories"] == long > 0 and np.isfinite(sampled.entries()[2]).all()
