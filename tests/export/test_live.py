"""A recommender that is replaced while threads ask it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hse_dist import LiveRecommender, Recommender
from hse_dist.errors import ExportError
from hse_dist.export import format
from hse_dist.export.format import RowBlock, load_export, write_export
from hse_dist.export.sweep import Sweep

ITEMS, DIMS = 50, 32


def write(folder: Path, seed: int, form: str = "parquet", rows: int = ITEMS, **settings) -> str:
    rng = np.random.default_rng(seed)
    columns = np.stack([np.sort(rng.permutation(DIMS)[:4]) for _ in range(ITEMS)])
    values = rng.standard_normal((ITEMS, 4)).astype(np.float32)
    gains = rng.standard_normal(ITEMS).astype(np.float32)
    blocks = [
        RowBlock(np.arange(0, 4 * len(part) + 1, 4), columns[part].ravel(), values[part].ravel(), gains[part])
        for part in np.split(np.arange(ITEMS), range(rows, ITEMS, rows))
    ]
    ids = pa.array([f"i{j}é" for j in range(ITEMS)]) if settings.pop("texts", False) else pa.array(range(ITEMS))
    write_export(folder, blocks, item_ids=ids, dims=DIMS, row_norm="free", form=form, **settings)
    return load_export(folder).content


def test_threads_see_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    write(tmp_path / "b", 2)
    answers = [Recommender.load(tmp_path / name).recommend([3, 7, 9], 5) for name in "ab"]
    live = LiveRecommender(tmp_path / "a", threads=1)
    before, first = live.current, live.version
    stop, wrong, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            answer = live.current.recommend([3, 7, 9], 5)
            if answer not in answers:
                wrong.append(answer)
            seen.add(answers.index(answer))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    versions = [live.reload(tmp_path / "ba"[turn % 2]) for turn in range(7)]
    while len(seen) < 2 and not wrong:
        stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert not wrong and seen == {0, 1}
    assert (
        live.version == versions[-1]
        and live.folder == tmp_path / "b"
        and live.current.recommend([3, 7, 9], 5) == answers[1]
    )
    assert len({first, *versions}) == 8 and before.recommend([3, 7, 9], 5) == answers[0]
    assert live.reload().split("-") == ["9", versions[-1].split("-")[1]]


def test_an_export_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "a", 1)
    write(tmp_path / "b", 2)
    wanted, check = load_export(tmp_path / "b"), format.check_files

    def replaced(folder: Path, *rest: Any) -> None:
        check(folder, *rest)
        if (tmp_path / "b").exists():
            shutil.rmtree(folder)
            (tmp_path / "b").rename(folder)

    monkeypatch.setattr(format, "check_files", replaced)
    found = load_export(tmp_path / "a")
    assert found.content == wanted.content and (found.matrix != wanted.matrix).nnz == 0


def test_threads_that_come_first_together_turn_the_matrix_once(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    matrix = load_export(tmp_path / "a").matrix
    sweep, found = Sweep(matrix, np.ones(matrix.shape[0], np.float32)), []
    threads = [threading.Thread(target=lambda: found.append(sweep._by_column())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 8 and len({id(one) for one in found}) == 1


def test_an_unfit_export_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    live = LiveRecommender(tmp_path / "a")
    one, version = live.current, live.version
    with pytest.raises(ExportError, match="no export at"):
        live.reload(tmp_path / "nowhere")
    assert live.current is one and live.version == version


@pytest.mark.parametrize("texts", [False, True])
def test_the_content_has_one_name_in_every_format(tmp_path: Path, texts: bool) -> None:
    names = {
        write(tmp_path / f"{form}{rows}", 1, form, rows, texts=texts)
        for form in ("parquet", "delta")
        for rows in (7, 50)
    }
    exported = load_export(tmp_path / "delta7")
    del exported.manifest["content"]  # as an older program wrote it
    assert names == {exported.content}
    others = {write(tmp_path / "o", 2, texts=texts), write(tmp_path / "o", 1, texts=texts, user_entries=3)}
    assert len(names | others) == 3
