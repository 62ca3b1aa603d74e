from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from hse_dist.data import progress
from hse_dist.data.prepare import prepare
from hse_dist.data.progress import Meter, Progress


class Lines(logging.Handler):
    """Takes the lines, and lets the test wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.came.set()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.02)
    handler, level = Lines(), progress.log.level
    progress.log.addHandler(handler)
    progress.log.setLevel(logging.INFO)
    yield handler
    progress.log.removeHandler(handler)
    progress.log.setLevel(level)


def wait_for(lines: Lines, text: str) -> str:
    while True:
        assert lines.came.wait(30), lines.lines
        lines.came.clear()
        if found := next((line for line in lines.lines if text in line), None):
            return found


def test_a_line_has_stage_shares_rate_and_seconds_to_go(tmp_path: Path, lines: Lines) -> None:
    driver = Progress(tmp_path / "notes", {"spill": 3.0, "group": 1.0})
    with driver.stage("spill", [30.0, 10.0]) as meter:
        assert "just begun" in wait_for(lines, "prepare: spill 0 %, 0 % of all, 0 interactions/s")
        Meter(meter(0))(1.0, 3000)
        Meter(meter(1))(0.5, 700)
        # of 40, 30 + 5 are done; the stage is three quarters of all
        line = wait_for(lines, "prepare: spill 88 %, 66 % of all")
        assert re.search(r"[1-9][\d,]* interactions/s, \d+ s to go$", line)
    with driver.stage("group", [1.0]) as meter:
        Path(meter(0)).write_text("0.5")  # half a note
        wait_for(lines, "prepare: group 0 %, 75 % of all")
    said = len(lines.lines)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("progress")]
    assert len(lines.lines) == said


def test_a_stage_that_fails_is_no_longer_told_of(tmp_path: Path, lines: Lines) -> None:
    driver = Progress(tmp_path / "notes", {"spill": 1.0})
    with pytest.raises(KeyError), driver.stage("spill", []):
        wait_for(lines, "prepare: spill 100 %")
        raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("progress")]


def test_a_task_notes_now_and_then_and_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter, note = Meter(str(tmp_path / "note")), tmp_path / "note"
    meter(0.1, 10)
    now[0] += 0.5
    meter(0.2, 20)
    assert note.read_text().split() == ["0.100000", "10"]
    now[0] += 0.6
    meter(0.3, 30)
    meter(1.0, 100)
    assert note.read_text().split() == ["1.000000", "100"]
    Meter("")(1.0, 1)


def test_prepare_says_how_far_it_is_and_what_it_did(
    tmp_path: Path,
    make_config: Any,
    write_log: Any,
    random_log: Any,
    caplog: pytest.LogCaptureFixture,
    lines: Lines,
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
