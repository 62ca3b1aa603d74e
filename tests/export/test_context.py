"""What is known of users beside histories, in what an export answers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hse_dist.export.recommender as module
from hse_dist.cli.main import main
from hse_dist.errors import ConfigError, DataError, ExportError
from hse_dist.export.batch import recommend_file
from hse_dist.export.delta import write_delta
from hse_dist.export.format import load_export
from hse_dist.export.live import LiveRecommender
from hse_dist.export.recommender import Recommender
from tests.export.served import DIMS, ITEMS, Made, block_of

USERS: list[tuple[set[int], dict[str, set]]] = [
    ({3, 9}, {"age": {24}, "tags": {"a", "ü"}}),
    ({3, 9}, {}),
    (set(), {"age": {2**60}}),
    (set(), {}),
    ({0, 1, 2}, {"tags": {"e"}}),
    (set(range(ITEMS - 2)), {"age": {18}}),
]
HISTORIES = [[100 + j for j in history] for history, _ in USERS]
FEATURES = [given or None for _, given in USERS]


@pytest.fixture(scope="module")
def made() -> Made:
    return Made.random(0)


@pytest.fixture(scope="module")
def folder(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    made.write(folder / "csr", form="csr")
    made.write(folder / "mapped", form="mapped")
    made.write(folder / "none", features=None)
    return folder


@pytest.mark.parametrize("options", [{}, {"kernels": False}, {"early": 10**6}, {"early": 10**6, "kernels": False}])
@pytest.mark.parametrize("form", ["csr", "mapped"])
def test_answers_against_the_formula(made: Made, folder: Path, form: str, options: dict[str, Any]) -> None:
    recommender = Recommender(load_export(folder / form, verify=False), **options)
    recommender.prepare()
    assert recommender.features == ("age", "tags")
    for k in (4, ITEMS):
        answers = recommender.recommend_batch(HISTORIES, k, features=FEATURES)
        assert [list(one) for one in answers] == [made.slow(*user, k) for user in USERS]
        alone = [recommender.recommend(one, k, features=given) for one, given in zip(HISTORIES, FEATURES, strict=True)]
        assert alone == answers


def test_blocks_and_threads_do_not_show(made: Made, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "USERS_AT_A_TIME", 2)
    recommender = Recommender.load(folder / "csr", threads=1)
    wanted = [made.slow(*user, 5) for user in USERS]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(recommender.recommend_batch, HISTORIES, 5, features=FEATURES) for _ in range(20)]
        assert all([list(one) for one in call.result()] == wanted for call in calls)


@pytest.mark.parametrize("given", [["a", "b"], ("b", "a", "a"), {"a", "b"}, np.array(["a", "b"])])
def test_several_values_come_as_any_collection_and_count_once(made: Made, folder: Path, given: Any) -> None:
    recommender = Recommender.load(folder / "csr")
    answer = recommender.recommend([104], 5, features={"tags": given, "age": np.int64(24)})
    assert list(answer) == made.slow({4}, {"tags": {"a", "b"}, "age": {24}}, 5)
    assert answer.unknown_features == {}
    assert recommender.recommend([104], 5, features={"tags": given, "age": np.array(24)}) == answer  # an array of one


def test_a_truth_value_is_its_text(made: Made, folder: Path) -> None:
    recommender = Recommender.load(folder / "csr")
    for given in (True, [np.bool_(True)], "true", ["true", True]):
        assert list(recommender.recommend([], 5, features={"tags": given})) == made.slow(set(), {"tags": {"true"}}, 5)
    assert recommender.recommend([], 5, features={"tags": False}).unknown_features == {"tags": [False]}


def test_unknown_values_are_told_and_change_nothing(made: Made, folder: Path) -> None:
    recommender = Recommender.load(folder / "csr")
    strange = ["24", 24.5, None, True, (1, 2), -(10**30), 25]
    answer = recommender.recommend([104, "x"], 5, features={"age": [24, *strange], "tags": "ab"})
    assert list(answer) == made.slow({4}, {"age": {24}}, 5)
    assert answer.unknown_features == {"age": strange, "tags": ["ab"]} and answer.unknown == ["x"]
    answer = recommender.recommend([104], 5, features={"age": None, "tags": []})
    assert answer == recommender.recommend([104], 5)
    assert len(recommender.recommend([], 5, features={"age": 7})) == 0


def test_what_cannot_be_meant_is_refused(folder: Path) -> None:
    recommender = Recommender.load(folder / "csr")
    with pytest.raises(ConfigError, match=r"no feature 'agee' of users\. There are age, tags"):
        recommender.recommend([100], features={"age": 24, "agee": 24})
    with pytest.raises(ConfigError, match=r"no feature 'age' of users\. It has none"):
        Recommender.load(folder / "none").recommend([100], features={"age": 24})
    with pytest.raises(ConfigError, match="2 histories, and features of 1 users"):
        recommender.recommend_batch([[100], [101]], features=[{"age": 24}])
    with pytest.raises(ConfigError, match="is a mapping"):
        recommender.recommend_batch([[100]], features={"age": 24})


def test_without_features_answers_are_those_of_an_export_without_any(folder: Path) -> None:
    one, other = (Recommender.load(folder / name) for name in ("csr", "none"))
    assert one.recommend_batch(HISTORIES, 9) == other.recommend_batch(HISTORIES, 9)


@pytest.mark.parametrize("entries", [None, 5])
def test_reasons_add_up_to_the_score_and_those_of_features_alone_name_no_items(
    made: Made, tmp_path: Path, entries: int | None
) -> None:
    recommender = Recommender.load(made.write(tmp_path / "e", user_entries=entries))
    for history, given in zip(HISTORIES, FEATURES, strict=True):
        answer = recommender.recommend(history, 6, features=given, explain=True, seen=True)
        assert answer.reasons is not None
        for score, reasons in zip(answer.scores, answer.reasons, strict=True):
            assert sum(one.contribution for one in reasons) == score
            assert history or not any(one.items for one in reasons)
    assert list(recommender.recommend([], 6, features={"age": 24}))


def test_a_replaced_export_has_its_own_features(made: Made, folder: Path) -> None:
    live = LiveRecommender(folder / "none")
    assert live.current.features == ()
    live.reload(folder / "mapped")
    assert list(live.current.recommend([], 3, features={"age": 24})) == made.slow(set(), {"age": {24}}, 3)


def test_there_are_no_deltas_yet(made: Made, folder: Path, tmp_path: Path) -> None:
    base, what = load_export(folder / "none"), {"dims": DIMS, "row_norm": "free"}
    write_delta(tmp_path / "d", base, [block_of(made.items, made.gains)], item_ids=base.item_ids, **what)
    with pytest.raises(ExportError, match=r"features of users \(age, tags\) takes no delta"):
        write_delta(tmp_path / "e", load_export(folder / "csr"), [], item_ids=base.item_ids, **what)
    with pytest.raises(ExportError, match=r"features of users \(age, tags\) takes no delta"):
        Recommender.load(folder / "csr").update(tmp_path / "d")


@pytest.mark.parametrize("block", [1, 100])
def test_a_file_of_histories_has_columns_of_features(made: Made, folder: Path, tmp_path: Path, block: int) -> None:
    users = [
        ({3, 9}, {"age": {24}, "tags": {"a"}}),
        (set(), {"tags": {"e", "true"}}),
        (set(), {}),
        ({1}, {"age": {18}}),
    ]
    table = {
        "user": ["u", "v", "w", "x"],
        "items": [[100 + item for item in history] for history, _ in users],
        "age": pa.array([24.0, None, 7, 18]),
        "tags": [["a", "a", "nothing"], ["e", "true"], None, [None]],
        "colour": [1, 2, 3, 4],
    }
    pq.write_table(pa.table(table), tmp_path / "h.parquet")
    summary = recommend_file(folder / "csr", tmp_path / "h.parquet", tmp_path / "r.parquet", k=6, block=block)
    answers = pq.read_table(tmp_path / "r.parquet")
    for user, items, scores in zip(users, answers["items"].to_pylist(), answers["scores"].to_pylist(), strict=True):
        assert list(zip(items, scores, strict=True)) == made.slow(*user, 6)
    assert summary["features"] == ["age", "tags"] and summary["recommended"] == 3
    assert (summary["unknown"], summary["unknown_values"]) == (0, 3)
    pq.write_table(pa.table({**table, "age": ["young"] * 4}), tmp_path / "h.parquet")
    with pytest.raises(DataError, match=r"The age of the histories .* are string, those of the export int64"):
        recommend_file(folder / "csr", tmp_path / "h.parquet", tmp_path / "r.parquet")


def test_the_command_line_takes_features(made: Made, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--feature", "age=24", "--feature", "tags=a,zz"]
    words = ["recommend", str(folder / "csr"), "--items", "", "-k", "5", *given]
    assert main(words) == 0
    answer = json.loads(capfd.readouterr().out)
    wanted = made.slow(set(), {"age": {24}, "tags": {"a"}}, 5)
    assert answer["items"] == [item for item, _ in wanted]
    assert answer["features"] == {"age": [24], "tags": ["a", "zz"]} and answer["unknown_features"] == {"tags": ["zz"]}
    assert main([*words[:4], "--feature", "height=3"]) == 2
    assert "height" in capfd.readouterr().err
