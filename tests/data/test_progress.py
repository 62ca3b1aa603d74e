"""What `prepare` says of itself."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from hse_dist.data.prepare import prepare
from hse_dist.progress import Meter


def test_prepare_says_how_far_it_is_and_what_it_did(
    tmp_path: Path,
    make_config: Any,
    write_log: Any,
    random_log: Any,
    caplog: pytest.LogCaptureFixture,
    lines: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = Meter.__call__

    def note_and_wait(meter: Meter, share: float, interactions: int) -> None:
        """So that no stage is over before a line of it is said."""
        note(meter, share, interactions)
        lines.came.clear()
        assert lines.came.wait(30)

    monkeypatch.setattr(Meter, "__call__", note_and_wait)
    write_log(tmp_path / "log.csv", random_log(300, 60, 4000))
    with caplog.at_level(logging.INFO, logger="hse_dist"):
        result = prepare(make_config(tmp_path / "data", tmp_path / "log.csv"))
    said = [line.split()[1] for line in lines.lines]
    assert list(dict.fromkeys(said)) == ["spill", "group", "count", "write"]
    shares = [int(re.search(r"(\d+) % of all", line).group(1)) for line in lines.lines]  # type: ignore[union-attr]
    assert shares == sorted(shares)
    assert re.search(r"prepare: 4,000 interactions in [\d.]+ s, [\d,]+ a second", caplog.text)
    assert result["interactions_per_second"] > 0 and not (tmp_path / "data" / "work").exists()


def test_a_task_over_the_setting_is_told(
    tmp_path: Path, make_config: Any, write_log: Any, random_log: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path / "log.parquet", random_log(50, 20, 500))
    with caplog.at_level(logging.WARNING, logger="hse_dist"):
        result = prepare(make_config(tmp_path / "data", tmp_path / "log.parquet", memory_mb=1))
    if result["task_memory_mb"] is None:
        pytest.skip("the system does not count a peak anew")
    over = result["task_memory_mb"] > 1
    assert ("more than data.memory_mb = 1." in caplog.text) == over
