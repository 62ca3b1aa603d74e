"""How far a job is: what the driver makes of the notes, on a terminal and without one."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist import progress
from hse_dist.cli.main import main
from hse_dist.data.prepared import Prepared
from hse_dist.progress import Meter, Progress, busy


def wait_for(lines: Any, text: str) -> str:
    while True:
        assert lines.came.wait(30), lines.lines
        lines.came.clear()
        if found := next((line for line in lines.lines if text in line), None):
            return found


def test_a_line_has_stage_shares_rate_and_seconds_to_go(tmp_path: Path, lines: Any) -> None:
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


def test_a_stage_that_fails_is_no_longer_told_of(tmp_path: Path, lines: Any) -> None:
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


def test_words_of_a_rank_take_the_place_of_the_rate(tmp_path: Path, lines: Any) -> None:
    with progress.telling("train", tmp_path / "notes", "users") as path:
        wait_for(lines, "train: 0 %, 0 users/s, just begun")
        Meter(path)(0.25, 64, "step 5/20  loss 0.5")
        assert wait_for(lines, "train: 25 %") == "train: 25 %, step 5/20  loss 0.5"
    assert not (tmp_path / "notes").exists()


def test_a_line_that_says_nothing_new_is_repeated_after_a_minute_only(
    tmp_path: Path, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.telling("train", tmp_path / "notes", "users") as path:
        Meter(path)(0.25, 7, "step 5/20")
        wait_for(lines, "step 5/20")
        sleep(0.3)  # fifteen looks
        assert sum("step 5/20" in line for line in lines.lines) == 1
        monkeypatch.setattr(progress, "SAME_SECONDS", 0.05)
        end = monotonic() + 30
        while sum("step 5/20" in line for line in lines.lines) < 3:
            assert monotonic() < end
            sleep(0.02)


def test_a_folder_that_cannot_be_written_ends_no_job(tmp_path: Path, lines: Any) -> None:
    (tmp_path / "file").write_text("")
    with progress.telling("train", tmp_path / "file" / "notes", "users") as path:
        Meter(path)(0.5, 1)
        wait_for(lines, "train: 0 %")


def test_work_without_a_known_end_says_what_it_is_at(lines: Any) -> None:
    with busy("train", "start") as at:
        wait_for(lines, "train: start, 0 s")
        at("solve")
        wait_for(lines, "train: solve, 0 s")


class Screen:
    """Standard error as a pseudo-terminal, or as a file, and what came there."""

    def __init__(self, patch: pytest.MonkeyPatch, path: Path, *, terminal: bool) -> None:
        self._came, self._path = bytearray(), path
        self._reader: threading.Thread | None = None
        if terminal:
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", "200")
            mine, theirs = os.openpty()
            self._reader = threading.Thread(target=self._read, args=(mine,), daemon=True)
            self._reader.start()
            self._file = open(theirs, "w", encoding="utf-8")  # noqa: SIM115
        else:
            self._file = path.open("w", encoding="utf-8")
        patch.setattr(sys, "stderr", self._file)

    def _read(self, descriptor: int) -> None:
        while True:
            try:
                self._came += os.read(descriptor, 65536)
            except OSError:  # so ends a terminal that nobody writes to
                os.close(descriptor)
                return

    def close(self) -> str:
        self._file.close()
        if self._reader is None:
            return self._path.read_text(encoding="utf-8")
        self._reader.join(10)
        return self._came.decode()


CONFIG = """
[run]
folder = "{0}/run"
[data]
source = "synthetic"
folder = "{0}/data"
users_per_row_group = 32
[data.synthetic]
users = 400
items = 120
[tables.item]
dims = 48
live = 6
chunk_width = 8
[model]
row_norm = "unit"
[sparsity]
start = "random"
budget.ceiling = 16
[train]
epochs = 2
batch_size = 32
log_every = 1
[evaluate]
users = 8
[cluster]
workers = 0
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_every_job_has_a_bar_on_a_terminal_and_lines_elsewhere_and_only_its_result_on_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.01)
    monkeypatch.setattr(progress, "METER_SECONDS", 0.0)
    config = tmp_path / "x.toml"
    config.write_text(CONFIG.format(tmp_path), encoding="utf-8")
    said: dict[str, str] = {}
    for job in ("prepare", "train", "evaluate", "export", "recommend"):
        words = [job, str(config)]
        if job == "recommend":
            items = Prepared(tmp_path / "data").item_ids().slice(0, 3).to_pylist()
            histories = pa.table({"user": list(range(30_000)), "items": [items] * 30_000})
            pq.write_table(histories, tmp_path / "histories.parquet")
            files = ("--histories", str(tmp_path / "histories.parquet"), "--output", str(tmp_path / "answers.parquet"))
            words = [job, str(tmp_path / "run" / "export"), *files]
        with monkeypatch.context() as patch:
            screen = Screen(patch, tmp_path / job, terminal=terminal)
            assert main(words) == 0
            said[job] = screen.close()
        (result,) = capfd.readouterr().out.splitlines()
        json.loads(result)
    for job, text in said.items():
        assert ("\x1b[" in text) == ("━" in text) == terminal, f"{job}: {text!r}"
        if terminal:
            assert re.search(rf"{job} .*━.* \d+ %", text), f"{job}: {text!r}"
            assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0, "the cursor did not come back"
        else:
            assert re.search(rf"^\d\d:\d\d:\d\d I {job}: ([\w ]+ )?\d+ %", text, re.MULTILINE), f"{job}: {text!r}"
    assert re.search(r"step \d+/\d+  loss \d\.\d+", said["train"])
    assert not list((tmp_path / "run" / ".progress").iterdir())
