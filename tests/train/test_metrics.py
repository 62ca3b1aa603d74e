"""What a run says of itself: lines in a file, and the same numbers as scalars."""

from __future__ import annotations

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hse_dist.train.metrics import MetricsLog


def test_a_dictionary_is_one_object_in_the_file_and_a_scalar_a_key_on_the_board(tmp_path):
    log = MetricsLog(tmp_path, first=True, step=-1)
    log.write("train", 10, {"loss": 0.5, "wire_bytes": {"ids": 400, "gradients": 3000}, "note": "no number"})
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["wire_bytes"] == {"ids": 400, "gradients": 3000}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert found == {
        "train/loss": [(10, 0.5)],
        "train/wire_bytes/ids": [(10, 400.0)],
        "train/wire_bytes/gradients": [(10, 3000.0)],
    }


def test_other_ranks_write_nothing(tmp_path):
    log = MetricsLog(tmp_path / "run", first=False, step=-1)
    log.write("train", 10, {"loss": 0.5})
    log.close()
    assert not (tmp_path / "run").exists()
