"""A log that grows is followed: rounds, exports, and going on after an end at any point."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import Config, FollowSettings, SyntheticSettings
from hse_dist.data import synthetic
from hse_dist.data.extend import Extended
from hse_dist.data.prepared import Prepared
from hse_dist.data.source import LogFile
from hse_dist.errors import ConfigError, DataError, PreemptedError, RunFolderError
from hse_dist.export.recommender import Recommender
from hse_dist.testing.runs import SMALL, as_toml, changed
from hse_dist.train import driver
from hse_dist.train import follow as module
from hse_dist.train.follow import State, complete, follow, next_step
from hse_dist.train.numbered import alone

DAYS = synthetic.days(SyntheticSettings(users=300, items=150, mean_history=14), 4, first=0.6, known=0.7)


def write_day(place: Path, day: int) -> None:
    """A partition that appears by a rename, and was complete a minute ago."""
    users, items, times = DAYS[day]
    write_partition(place, f"day={day}", pa.table({"user_id": users, "item_id": items, "timestamp": times}))


def write_partition(place: Path, name: str, table: pa.Table) -> None:
    folder, hidden = place / "log" / name, place / "log" / f".{name}"
    hidden.mkdir(parents=True)
    pq.write_table(table, hidden / "part.parquet")
    os.utime(hidden / "part.parquet", (time.time() - 60, time.time() - 60))
    hidden.rename(folder)


def config_of(place: Path, **changes: Any) -> Config:
    raw = json.loads(json.dumps(SMALL))
    raw["run"] = {"folder": str(place / "run")}
    raw["data"] = {"source": str(place / "log"), "folder": str(place / "data"), "extendable": True}
    raw["data"] |= {"users_per_row_group": 32, "columns": {"timestamp": "timestamp"}}
    raw["follow"] = {"watermark_seconds": 30, "poll_seconds": 0.01, "epochs": 1, "rounds": 3}
    raw["tables"]["item"]["slack"] = 0.4
    return changed(raw, **changes)


def latest(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "run" / "exports" / "latest.json").read_text())
    return found


def tables_of(place: Path) -> dict[str, Any]:
    """Per round that is there, the last step and what its table holds, from its export."""
    found = {}
    for path in sorted((place / "run" / "exports").glob("0*")):
        export = Recommender.load(path)
        found[path.name] = (export.item_ids.to_pylist(), export.recommend(export.item_ids[:3].to_pylist(), 20))
    return found


@pytest.mark.parametrize(
    ("state", "settings", "news", "idle", "step"),
    [
        (State(0, 0, 0), {}, False, 1e9, "wait"),
        (State(0, 0, 0), {}, True, 0.0, "prepare"),
        (State(1, 0, 0), {}, True, 0.0, "train"),
        (State(1, 1, 0), {}, True, 0.0, "export"),
        (State(2, 1, 0), {"rounds": 1}, True, 0.0, "export"),
        (State(2, 1, 1), {"rounds": 1}, True, 0.0, "train"),
        (State(1, 1, 1), {"rounds": 1}, True, 0.0, "end"),
        (State(1, 1, 1), {"idle_seconds": 5.0}, False, 4.9, "wait"),
        (State(1, 1, 1), {"idle_seconds": 5.0}, False, 5.0, "end"),
        (State(1, 1, 1), {"idle_seconds": 5.0}, True, 9.0, "prepare"),
        (State(5, 5, 3), {"export_every": 3}, True, 0.0, "prepare"),
        (State(7, 6, 3), {"export_every": 3}, True, 0.0, "export"),
    ],
)
def test_what_is_next_follows_from_what_is_there(state, settings, news, idle, step):
    assert next_step(state, FollowSettings(**settings), news=news, idle_seconds=idle) == step


def test_a_partition_is_complete_when_all_of_it_is_older_than_the_watermark():
    ages = {"a/1": 100, "a/2": 10, "b/1": 100, "b/2": 60, "c/1": None}
    now = 10**18
    files = [
        LogFile("", path, "parquet", 1, modified=None if age is None else now - age * 10**9)
        for path, age in ages.items()
    ]
    assert [file.path for file in complete(files, now, 50)] == ["b/1", "b/2", "c/1"]
    assert len(complete(files, now, 0)) == 5


def test_rounds_follow_the_log_and_newest_exports_know_new_items(tmp_path):
    days = iter(range(3))

    def sleep(seconds: float) -> None:
        write_day(tmp_path, next(days))

    config = config_of(tmp_path, follow__keep=2, checkpoint__folder=str(tmp_path / "checkpoints"))
    (tmp_path / "log").mkdir()
    left = [tmp_path / "run" / "rounds" / ".0001.77.old", tmp_path / "data" / ".0001.77.tmp", tmp_path / "data" / ".x"]
    for folder in left:
        folder.mkdir(parents=True)
    result = follow(config, sleep)
    assert (result["rounds"], result["rounds_now"]) == (3, 3)
    assert latest(tmp_path)["round"] == 3 and latest(tmp_path)["folder"] == "0003"
    assert [folder.exists() for folder in left] == [False, False, True]
    for folder in ("run/rounds", "run/exports", "data", "checkpoints"):
        assert sorted(path.name for path in (tmp_path / folder).glob("0*")) == ["0002", "0003"]
    exports = tables_of(tmp_path)
    before, after = exports["0002"][0], exports["0003"][0]
    assert len(after) > len(before) and after[: len(before)] == before
    assert after == Prepared(tmp_path / "data" / "0003").item_ids().to_pylist()
    again = follow(config, sleep)
    assert again["rounds_now"] == 0 and again["latest"] == result["latest"]
    for content in ("[]", '{"round": "3"}', '{"round": 4}', '{"round": -1}'):
        (tmp_path / "run" / "exports" / "latest.json").write_text(content)
        with pytest.raises(RunFolderError, match="newest export"):
            follow(config, sleep)


@pytest.mark.slow
def test_an_end_at_any_point_changes_nothing(tmp_path, monkeypatch):
    places = [tmp_path / name for name in ("whole", "broken")]
    for place in places:
        write_day(place, 0)
    feeding = {place: iter(range(1, 3)) for place in places}

    def feed(place: Path) -> Callable[[float], None]:
        return lambda seconds: write_day(place, next(feeding[place]))

    whole, broken = (config_of(place) for place in places)
    follow(whole, feed(places[0]))
    ends = 0
    for name in ("prepare", "train", "export"):
        real = getattr(module, name)
        for when in ("before", "after"):

            def end(*given: Any, when: str = when, real: Any = real, **named: Any) -> Any:
                if when == "after":
                    real(*given, **named)
                raise PreemptedError("Stopped.")

            with monkeypatch.context() as patch:
                patch.setattr(module, name, end)
                try:
                    follow(broken, feed(places[1]))
                except PreemptedError:
                    ends += 1
    follow(broken, feed(places[1]))
    assert ends == 6 and tables_of(places[0]) == tables_of(places[1])


def test_a_file_that_cannot_be_read_is_tried_again_and_ends_it_in_the_end(tmp_path, caplog):
    write_day(tmp_path, 0)
    config = config_of(tmp_path, follow__rounds=2, follow__export_every=9, follow__tries=3, train__epochs=1)
    part = tmp_path / "log" / "day=1" / "part.parquet"
    waits = 0

    def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 1:
            write_day(tmp_path, 1)
            part.rename(tmp_path / "whole")
            part.write_bytes((tmp_path / "whole").read_bytes()[:-100])
            os.utime(part, (time.time() - 60, time.time() - 60))
        elif waits == 6:
            (tmp_path / "whole").rename(part)

    with pytest.raises(DataError, match="not a readable Parquet file"):
        follow(config, sleep)
    assert waits == 3 and caplog.text.count("of follow.tries = 3") == 2
    waits = 4
    assert follow(config, sleep)["rounds"] == 2 and waits == 6


def test_a_first_version_that_cannot_be_made_ends_it_at_once(tmp_path):
    write_day(tmp_path, 0)
    with pytest.raises(DataError, match="has no column nobody"):
        follow(config_of(tmp_path, data__columns__item="nobody"), pytest.fail)


def test_features_are_not_followed_yet(tmp_path):
    config = config_of(tmp_path, data__extendable=False, data__features={"x": {"of": "user", "column": "c"}})
    with pytest.raises(ConfigError, match=r"cannot be extended or followed yet.*data\.features = \['x'\]"):
        follow(config, pytest.fail)


@pytest.mark.parametrize("setting", ["run.folder", "data.folder"])
def test_one_process_at_a_time_follows_into_a_folder(tmp_path, setting):
    refused = pytest.raises(RunFolderError, match=f"Another train --follow is at work.*{setting}")
    with alone(tmp_path / setting.partition(".")[0], setting), refused:
        follow(config_of(tmp_path), pytest.fail)


def test_a_round_that_was_begun_goes_on_whatever_its_folder_is_called(tmp_path, monkeypatch):
    for day in range(2):
        write_day(tmp_path, day)
    changes = {"follow__export_every": 9, "train__epochs": 1, "train__checkpoint_every": 5}
    shutil.move(tmp_path / "log" / "day=1", tmp_path / "day=1")
    follow(config_of(tmp_path, follow__rounds=1, **changes))
    shutil.move(tmp_path / "day=1", tmp_path / "log" / "day=1")
    config = config_of(tmp_path, follow__rounds=2, **changes)
    follow(config)
    done = tmp_path / "run" / "rounds" / "0002" / "round.json"
    done.unlink()  # as if it had ended right before
    monkeypatch.chdir(tmp_path)
    other = config_of(tmp_path, follow__rounds=2, run__folder="run", follow__epochs=7, **changes)
    assert module._Following(other).of_round(3).train.epochs == 7
    assert follow(other)["rounds_now"] == 1 and done.exists()


@pytest.mark.parametrize("resume", ["must", "never"])
def test_rounds_begin_and_go_on_whatever_a_single_run_would_do(tmp_path, resume):
    following = module._Following(config_of(tmp_path, run__resume=resume))
    assert following.of_round(1).run.resume == following.of_round(2).run.resume == "auto"


def test_rounds_without_their_prepared_versions_or_the_other_way_round_are_refused(tmp_path):
    write_day(tmp_path, 0)
    config = config_of(tmp_path, follow__rounds=1, train__epochs=1)
    follow(config)
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match=r"The 1 rounds .* do not fit.*Remove both or neither"):
        follow(config)
    shutil.rmtree(tmp_path / "run")
    shutil.move(tmp_path / "elsewhere" / "0001", tmp_path / "data" / "0004")
    with pytest.raises(RunFolderError, match=r"The 0 rounds .* do not fit.*Remove both or neither"):
        follow(config)
    assert not (tmp_path / "data" / "0001").exists()


def test_a_partition_without_rows_is_no_news_until_another_one_comes(tmp_path, caplog):
    write_day(tmp_path, 0)
    config = config_of(tmp_path, follow__rounds=2, follow__export_every=9, train__epochs=1)
    waits = 0

    def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 1:
            empty = pq.read_table(tmp_path / "log" / "day=0" / "part.parquet").slice(0, 0)
            write_partition(tmp_path, "day=8", empty)
        else:
            write_day(tmp_path, 1)

    assert follow(config, sleep)["rounds"] == 2 and waits == 2
    assert "follow.tries" not in caplog.text  # it is no fault either
    read = Extended(tmp_path / "data" / "0002").files
    assert [Path(name).parent.name for name in read] == ["day=0", "day=1", "day=8"]


def test_a_signal_after_the_last_step_of_a_round_ends_it_too(tmp_path, monkeypatch):
    write_day(tmp_path, 0)
    config, real = config_of(tmp_path, follow__rounds=1), driver.run_workers

    def late(*given: Any, **named: Any) -> Any:
        found = real(*given, **named)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(driver, "run_workers", late)
        with pytest.raises(PreemptedError, match="end of a round"):
            follow(config)
    assert (tmp_path / "run" / "rounds" / "0001" / "round.json").exists()
    assert not (tmp_path / "run" / "exports").exists()
    assert follow(config)["rounds_now"] == 0 and latest(tmp_path)["round"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__extendable": False}, r"data\.extendable"),
        ({"run__continues": "x"}, r"run\.continues"),
        ({"train__teacher": "x"}, r"train\.teacher"),
        ({"sparsity__schedule__kind": "one_shot", "sparsity__schedule__live_start": 10}, "cut them again"),
    ],
)
def test_settings_that_no_later_round_could_use_are_refused_at_once(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        follow(config_of(tmp_path, **changes))


def start(place: Path, config: Config, log: Path) -> subprocess.Popen[bytes]:
    (place / "follow.toml").write_text(as_toml(config))
    command = [sys.executable, "-W", "ignore", "-m", "hse_dist.cli", "train", str(place / "follow.toml"), "--follow"]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=place)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.02)


@pytest.mark.slow  # ten seconds each; what a signal does to a run is told by the tests of preemption
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_round_with_a_checkpoint_and_the_next_one_goes_on(tmp_path, number):
    for place in (tmp_path / "whole", tmp_path / "broken"):
        for day in range(2):
            write_day(place, day)
    changes = {"follow__rounds": 1, "train__epochs": 40, "train__checkpoint_every": 500, "train__evaluate_every": 40}
    whole, broken = (config_of(tmp_path / name, **changes) for name in ("whole", "broken"))
    follow(whole)
    place, log = tmp_path / "broken", tmp_path / "log.txt"
    process = start(place, broken, log)
    metrics = place / "run" / "rounds" / "0001" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"train"' in metrics.read_text(), process, log)
    process.send_signal(number)
    assert process.wait(60) == 143, log.read_text()[-3000:]
    steps = [one.step for one in CheckpointStore(place / "run" / "rounds" / "0001" / "checkpoints", 2).all()]
    assert 0 < max(steps) < 300
    assert not (place / "run" / "rounds" / "0001" / "round.json").exists()
    follow(broken)
    assert tables_of(tmp_path / "whole") == tables_of(place)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_two_workers_follow_a_log_end_while_they_wait_and_go_on(tmp_path):
    write_day(tmp_path, 0)
    config = config_of(tmp_path, cluster__workers=2, follow__rounds=2)
    log = tmp_path / "log.txt"
    process = start(tmp_path, config, log)
    wait_for(lambda: (tmp_path / "run" / "exports" / "latest.json").exists(), process, log, 300)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, log.read_text()[-3000:]
    write_day(tmp_path, 1)
    process = start(tmp_path, config, log)
    assert process.wait(300) == 0, log.read_text()[-3000:]
    assert latest(tmp_path)["round"] == 2
    assert json.loads(log.read_text().splitlines()[-1])["rounds_now"] == 1
    shutil.rmtree(tmp_path / "run" / "rounds")
