from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

import hse_dist
import hse_dist.export.recommender as module
from hse_dist.errors import ConfigError, DataError, ExportError
from hse_dist.export import ids
from hse_dist.export.batch import recommend_file
from hse_dist.export.format import RowBlock, write_export
from hse_dist.export.recommender import Recommender

ITEMS, DIMS = 60, 300


def make_export(folder: Path, ids: pa.Array, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Small whole numbers, so that every sum is exact and ties are many; the dense rows and gains."""
    generator = np.random.default_rng(seed)
    # few columns in use: rows share them, so that scores are not all 0
    dense = np.zeros((len(ids), DIMS), np.float32)
    dense[:, :40] = generator.integers(-2, 3, (len(ids), 40)) * (generator.random((len(ids), 40)) < 0.3)
    gains = generator.choice(np.array([-1.0, 0.5, 1.0], np.float32), len(ids))
    matrix = sp.csr_matrix(dense)
    block = RowBlock(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data, gains)
    write_export(folder, [block], item_ids=ids, dims=DIMS, row_norm="free")
    return dense, gains


def slow(dense: np.ndarray, gains: np.ndarray, history: set[int], k: int) -> list[tuple[int, float]]:
    if not history:
        return []
    u = sum(dense[i].astype(np.float64) for i in history)
    scores = {j: float(gains[j] * (u @ dense[j])) for j in range(len(dense)) if j not in history}
    return [(j, scores[j]) for j in sorted(scores, key=lambda j: (-scores[j], j))[:k]]


@pytest.fixture(params=["kernels", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the compiled kernels may be used."""
    if request.param == "plain":
        monkeypatch.setattr("hse_dist.export.search.available", lambda matrix: False)
    return request.param == "kernels"


@pytest.fixture(params=["integers", "strings"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list, np.ndarray, np.ndarray]:
    ids = list(range(500, 500 + ITEMS)) if request.param == "integers" else [f"b{i}" for i in range(ITEMS)]
    return tmp_path / "e", ids, *make_export(tmp_path / "e", pa.array(ids))


def random_histories(users: int, seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, ITEMS, generator.integers(0, 12)).tolist() for _ in range(users)]


def test_one_history_against_the_formula(served, kernels) -> None:
    folder, ids, dense, gains = served
    recommender = hse_dist.Recommender.load(folder)
    for history in [[3], [3, 3, 9, 40], [59, 0, 1], list(range(ITEMS - 2))]:
        answer = recommender.recommend([ids[i] for i in history], 7)
        assert list(answer) == [(ids[j], score) for j, score in slow(dense, gains, set(history), 7)]
        assert answer.unknown == [] and len(answer) == len(answer.items) == min(7, ITEMS - len(set(history)))


def test_unknown_items_are_reported_and_skipped(served) -> None:
    folder, ids, dense, gains = served
    recommender = Recommender.load(folder)
    strange = ["nothing", None, -(10**30), 2.5, (1, 2)]
    answer = recommender.recommend([strange[0], ids[4], *strange[1:], ids[8]], 5)
    assert answer.unknown == strange
    assert list(answer) == [(ids[j], score) for j, score in slow(dense, gains, {4, 8}, 5)]
    assert list(recommender.recommend(strange, 5)) == list(recommender.recommend([], 5)) == []


@pytest.mark.parametrize("users_at_a_time", [1, 7, 1024])
def test_blocks_do_not_show(served, kernels, monkeypatch, users_at_a_time: int) -> None:
    folder, _, dense, gains = served
    monkeypatch.setattr(module, "SCORES_AT_A_TIME", users_at_a_time * ITEMS)
    monkeypatch.setattr(module, "USERS_AT_A_TIME", users_at_a_time)
    histories = random_histories(20, 1)
    offsets = np.cumsum([0, *map(len, histories)])
    rows = np.array([i for history in histories for i in history])
    before = rows.copy()
    top, scores = Recommender.load(folder).recommend_rows(offsets, rows, 11)
    np.testing.assert_array_equal(rows, before)
    assert top.shape == scores.shape == (20, 11)
    for b, history in enumerate(histories):
        found = [(j, s) for j, s in zip(top[b].tolist(), scores[b].tolist(), strict=True) if j >= 0]
        assert found == slow(dense, gains, set(history), 11)


def test_rows_are_found_both_ways(tmp_path: Path) -> None:
    make_export(tmp_path / "e", pa.array([f"i{n}" for n in range(200)]))
    recommender = Recommender.load(tmp_path / "e")
    few = pa.array(["i7", None, "x", "i199", "i7"])
    many = pa.concat_arrays([few] * 10)
    expected = [7, -1, -1, 199, 7]
    for _ in range(ids.PATIENCE + 1):  # then they are put in order
        assert recommender.rows_of(few).tolist() == expected
    assert recommender.rows_of(few).tolist() == expected
    assert recommender.rows_of(many).tolist() == expected * 10
    assert recommender.rows_of(few.slice(0, 0)).tolist() == []


def test_k_beyond_the_items_gives_them_all_and_below_one_is_refused(served, kernels) -> None:
    folder, ids, _, _ = served
    recommender = Recommender.load(folder)
    assert len(recommender.recommend([ids[0]], 10_000)) == ITEMS - 1
    with pytest.raises(ConfigError, match="k = 0 is out of range"):
        recommender.recommend([ids[0]], 0)


def write_histories(path: Path, histories: list, users: pa.Array, kind: pa.DataType) -> None:
    pq.write_table(
        pa.table({"other": users, "user": users, "items": pa.array(histories, kind)}), path, row_group_size=4
    )


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("wrap", [pa.list_, pa.large_list])
def test_a_file_of_histories(served, tmp_path: Path, block: int, wrap) -> None:
    folder, ids, dense, gains = served
    rows = [*random_histories(12, 2), [], [5]]
    histories = [[ids[i] for i in history] for history in rows]
    stranger = type(ids[0])(9999)
    histories[3] = [stranger, *histories[3], None]
    histories.append(None)
    histories.append([stranger])
    rows += [[], []]
    users = pa.array([f"user {u}" for u in range(len(rows))])
    write_histories(tmp_path / "h.parquet", histories, users, wrap(pa.array(ids).type))
    summary = recommend_file(folder, tmp_path / "h.parquet", tmp_path / "out/r.parquet", k=6, block=block)
    table = pq.read_table(tmp_path / "out/r.parquet")
    assert table["user"].combine_chunks().equals(users)
    for history, items, scores in zip(rows, table["items"].to_pylist(), table["scores"].to_pylist(), strict=True):
        expected = slow(dense, gains, set(history), 6)
        assert items == [ids[j] for j, _ in expected]
        assert scores == [score for _, score in expected]
    assert summary["users"] == len(rows)
    assert summary["recommended"] == sum(bool(history) for history in rows)
    assert (summary["unknown"], summary["unknown_items"]) == (3, [stranger, None])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["r.parquet"]


def test_ids_of_a_narrower_type_or_a_dictionary_are_understood(tmp_path: Path) -> None:
    make_export(tmp_path / "n", pa.array(range(ITEMS)))
    make_export(tmp_path / "s", pa.array([str(i) for i in range(ITEMS)]))
    lists = {
        "n": pa.array([[1, 2]], pa.list_(pa.int32())),
        "s": pa.ListArray.from_arrays([0, 2], pa.array(["1", "2"]).dictionary_encode()),
    }
    answers = {}
    for name, items in lists.items():
        pq.write_table(pa.table({"user": [0], "items": items}), tmp_path / f"{name}.parquet")
        recommend_file(tmp_path / name, tmp_path / f"{name}.parquet", tmp_path / "out.parquet")
        answers[name] = pq.read_table(tmp_path / "out.parquet")["items"].to_pylist()
    assert [str(i) for i in answers["n"][0]] == answers["s"][0] != []


def test_histories_that_cannot_be_used_leave_nothing_behind(served, tmp_path: Path) -> None:
    folder, ids, _, _ = served
    output = tmp_path / "out/r.parquet"
    path = tmp_path / "h.parquet"

    def refused(error: type[Exception], message: str, **settings: int) -> None:
        with pytest.raises(error, match=message):
            recommend_file(folder, path, output, **settings)
        assert not output.parent.exists() or not list(output.parent.iterdir())

    refused(DataError, r"no file of histories .*h\.parquet")
    refused(ConfigError, "k = 0 and block = 8192", k=0)
    path.write_bytes(b"not parquet at all")
    refused(DataError, r"h\.parquet are not a Parquet file")
    pq.write_table(pa.table({"user": [1], "item": [ids[0]]}), path)
    refused(DataError, "lack items. There is user, item")
    pq.write_table(pa.table({"user": [1], "items": [ids[0]]}), path)
    refused(DataError, "must be a list of")
    if isinstance(ids[0], int):
        pq.write_table(pa.table({"user": [1], "items": [["seven"]]}), path)
        refused(DataError, "items of the histories .* are string, those of the export int64")
    write_histories(path, [[ids[0]]] * 50, pa.array(range(50)), pa.list_(pa.array(ids).type))
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:4] + bytes(footer - 4) + content[footer:])
    refused(DataError, r"h\.parquet cannot be read")
    with pytest.raises(DataError, match="would be replaced"):
        recommend_file(folder, path, path)


def test_an_output_that_cannot_be_written_is_named(served, tmp_path: Path) -> None:
    folder, ids, _, _ = served
    write_histories(tmp_path / "h.parquet", [[ids[0]]], pa.array([1]), pa.list_(pa.array(ids).type))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match=r"cannot be written to .*file/r\.parquet"):
        recommend_file(folder, tmp_path / "h.parquet", tmp_path / "file/r.parquet")


def test_serving_imports_neither_ray_nor_torch(served) -> None:
    folder, ids, _, _ = served
    program = f"""
import sys
import hse_dist
answer = hse_dist.Recommender.load({str(folder)!r}).recommend([{ids[3]!r}], 3)
import hse_dist.export.batch
heavy = {{"ray", "torch", "torchrec", "fbgemm_gpu", "pydantic"}} & set(sys.modules)
assert len(answer) == 3 and not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_package_has_no_other_lazy_names() -> None:
    assert hse_dist.Recommender is Recommender
    with pytest.raises(AttributeError, match="nothing"):
        _ = hse_dist.nothing
