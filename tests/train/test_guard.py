"""NaN and infinity: named with their rows, on every rank, before any table moves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hse_dist.config import Config
from hse_dist.data.prepare import prepare
from hse_dist.data.prepared import Prepared
from hse_dist.errors import NumericError
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.start import make_start
from hse_dist.testing.faults import Planted, faulty_worker, plant
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.runs import metrics_of, read_checkpoint, small_config, store_of
from hse_dist.train.step import Trainer

KINDS = {
    "nan_loss": r"In step 6 the loss of rank 1 is nan\.",
    "nan_row": r"In step 6 the loss of rank \d is nan by the values of row \d+",
    "nan_gradient": r"In step 6 the gradient of rank 1 is no number in the values of row \d+(, \d+){9} and \d+ more",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared histories of some 400 users over 150 items."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(small_config(folder.parent / "run", folder))
    return folder


def begin(config: Config, kind: Any, *steps: int) -> dict[str, Any]:
    """A run folder with faults of rank 1; the server's state."""
    folder = RunFolder(config)
    folder.claim()
    make_start(config, Prepared(config.data.folder), folder.start)
    for step in steps:
        plant(folder.path / "faults", Planted(f"{step:03d}", kind, 1, step))
    return SparsityServer(config.sparsity, 0, 1).state_dict()


def work(ranks: Ranks, config: Config, state: dict[str, Any]) -> Any:
    """The run of a rank, or its error; and the table's bytes before and after each step."""
    seen: list[tuple[bytes, bytes]] = []
    step = Trainer.step

    def watched(self: Trainer, batch: Any, number: int, *following: Any) -> Any:
        before = self.table.local_values().numpy().tobytes()
        result = step(self, batch, number, *following)
        seen.append((before, self.table.local_values().numpy().tobytes()))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        try:
            return faulty_worker(ranks, {"config": config, "server": None, "server_state": state}), seen
        except NumericError as error:
            return str(error), seen


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_none_ends_the_run_on_both_ranks_with_the_same_words(tmp_path, data, kind):
    # with so many negatives every row is a candidate of both ranks
    config = small_config(tmp_path / "run", data, train__checkpoint_every=4, train__negatives=2000)
    (one, steps), (other, _) = run_ranks(work, 2, config, begin(config, kind, 6))
    assert one == other and "train.learning_rate" in one
    assert re.match(KINDS[kind], one), one
    assert len(steps) == 5 and store_of(config).latest().step == 4


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["nan_loss", "nan_gradient"])
def test_a_step_that_is_left_out_moves_no_table_and_is_counted(tmp_path, data, kind):
    config = small_config(tmp_path / "run", data, train__on_nan="skip", train__epochs=2, train__log_every=1)
    (summary, one), (_, other) = run_ranks(work, 2, config, begin(config, kind, 4, 9))
    assert summary["skipped"] == 2
    for steps in (one, other):  # rewires come at 6 and 12
        assert [number for number, (before, after) in enumerate(steps, 1) if before == after] == [4, 9]
    lines = {line["step"]: line for line in metrics_of(config) if line["kind"] == "train"}
    assert [lines[step]["loss"] is None for step in (3, 4, 5, 9)] == [False, True, False, True]
    assert [lines[step]["skipped"] for step in (3, 4, 8, 9)] == [0, 1, 1, 2]
    states = run_ranks(read_checkpoint, 2, config, store_of(config).latest(), Prepared(data).items)
    assert all(np.isfinite(part).all() for state in states for part in state.values())


@pytest.mark.distributed
def test_a_row_that_stays_no_number_ends_even_a_run_that_leaves_steps_out(tmp_path, data):
    changes = {
        "train__negatives": 2000,
        "train__epochs": 6,
        "sparsity__schedule__interval": 30,
        "train__evaluate_every": 6,
    }
    config = small_config(tmp_path / "run", data, train__on_nan="skip", **changes)
    (one, steps), _ = run_ranks(work, 2, config, begin(config, "nan_row", 3))
    assert "20th step in a row" in one and len(steps) == 21
