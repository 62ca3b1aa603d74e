"""A newer export takes the place of an older one: while requests are answered, and only if it is fit."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from hse_dist import Recommender
from hse_dist.errors import HseError
from hse_dist.serve.app import make_app
from hse_dist.serve.options import Limits
from hse_dist.serve.place import find
from hse_dist.serve.service import Service, Watch
from tests.serve.serving import Client, running, write

HISTORY = [1000, 1001, 1002, 1003]


def damage(folder: Path) -> None:
    (path,) = folder.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-1])


def until(client: Client, version: str) -> None:
    end = time.monotonic() + 20
    while client.send("GET", "/healthz").json["version"] != version:
        assert time.monotonic() < end, "no reload"
        time.sleep(0.02)


def test_an_export_that_is_replaced_is_taken_without_being_told(export, serving):
    client, _ = serving()
    before = client.ask(history=HISTORY).json
    write(export, seed=1)
    after = Recommender.load(export)
    until(client, after.version[:12])
    assert client.ask(history=HISTORY).json == asdict(after.recommend(HISTORY)) != before
    assert client.counted('hse_serve_reloads_total{result="taken"}') == 1
    assert client.counted(f'hse_serve_replicas{{version="{after.version[:12]}"}}') == 1


def test_while_an_export_is_loaded_counts_are_told_and_answers_given(export):
    service, go_on, told = Service(export, Limits()), threading.Event(), threading.Semaphore(0)

    async def gather(own):
        told.release()
        return [own]

    loading = threading.Event()
    service.look = lambda again=False: loading.set() or go_on.wait(20)
    with running(make_app(service, Limits(), look_seconds=0.02, gather=gather)) as port:
        assert loading.wait(20)
        for _ in range(5):
            assert told.acquire(timeout=20)
        assert Client(port).ask(history=HISTORY).status == 200
        Client.close_all()
        go_on.set()


def test_a_folder_of_exports_is_followed_by_its_latest(tmp_path, serving):
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path / "all" / name, seed)
    latest = tmp_path / "all" / "latest.json"
    latest.write_text('{"folder": "a"}')
    client, _ = serving(tmp_path / "all")
    versions = {name: Recommender.load(tmp_path / "all" / name).version[:12] for name in "ab"}
    until(client, versions["a"])
    latest.write_text('{"folder": "b"}')
    until(client, versions["b"])


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"folder": 3}', '{"folder": ""}', '{"folder": "../e"}', '{"folder": ".."}', '{"folder": "no"}'],
)
def test_a_latest_that_names_nothing_beside_it_is_one_message(tmp_path, text):
    write(tmp_path / "e")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "latest.json").write_text(text)
    with pytest.raises(HseError):
        find(tmp_path / "all")


def test_a_bad_export_is_refused_and_the_old_one_goes_on(export, serving, caplog):
    client, _ = serving(look_seconds=3600.0)  # looks when it is told to
    before = client.ask(history=HISTORY).json
    write(export, seed=1)
    damage(export)
    refused = client.send("POST", "/reload")
    assert refused.status == 409 and "truncated or changed" in refused.json["detail"]
    assert client.ask(history=HISTORY).json == before
    assert client.counted('hse_serve_reloads_total{result="refused"}') == 1
    write(export, seed=2)
    version = Recommender.load(export).version[:12]
    assert client.send("POST", "/reload").json == {"version": version, "changed": True}
    assert client.send("POST", "/reload").json == {"version": version, "changed": False}
    assert client.ask(history=HISTORY).json != before


def test_what_is_wrong_is_logged_once(export, caplog):
    service = Service(export, Limits())
    watch = Watch(service)
    write(export, seed=1)
    damage(export)
    with caplog.at_level(logging.INFO, "hse_dist.serve"):
        for _ in range(3):
            watch()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "The export before goes on answering" in caplog.text
    # nor is it read again and again
    samples = {
        sample[0]: sample[2]
        for one in service.counts.snapshot()
        for sample in one["samples"]
        if "refused" in str(sample)
    }
    assert samples == {"hse_serve_reloads_total": 1}
    write(export, seed=2)
    with caplog.at_level(logging.INFO, "hse_dist.serve"):
        watch()
        watch()
    assert caplog.text.count("Another export") == 1 and "ERROR" not in caplog.text


def refusals(service: Service) -> float:
    found = [one for family in service.counts.snapshot() for one in family["samples"]]
    return sum(value for _, labels, value in found if labels.get("result") == "refused")


@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(24, "Too many open files"), HseError("lacks it")])
def test_what_failed_is_tried_again_after_a_pause_that_grows(export, monkeypatch, caplog, error):
    service, tries, now = Service(export, Limits()), [], [0.0]
    watch, load = Watch(service), service._live.reload
    monkeypatch.setattr("hse_dist.serve.service.time.monotonic", lambda: now[0])

    def fail(folder):
        tries.append(now[0])
        raise error

    service._live.reload = fail
    version = service.version
    write(export, seed=1)
    for second in range(16):
        now[0] = float(second)
        watch()
    assert tries == [0, 2, 6, 14] and refusals(service) == 4
    assert len(caplog.records) == 1 and service.version == version
    service._live.reload = load
    now[0] = 100.0
    watch()
    assert service.version == Recommender.load(export).version[:12] != version
    assert service.well


def test_a_missing_export_is_counted_once_for_each_time_it_goes(export, tmp_path, caplog):
    service = Service(export, Limits())
    watch = Watch(service)
    for times in (1, 2):
        export.rename(tmp_path / "away")
        for _ in range(3):
            watch()
        assert refusals(service) == times == len(caplog.records)
        (tmp_path / "away").rename(export)
        watch()


def test_nothing_is_loaded_that_is_served_and_one_may_ask_at_a_time(export, serving):
    client, service = serving(look_seconds=3600.0)
    loads, began, go_on, load = [], threading.Event(), threading.Event(), service._live.reload

    def slow(folder):
        loads.append(folder)
        began.set()
        assert go_on.wait(20)
        return load(folder)

    service._live.reload = slow
    for _ in range(3):
        assert client.send("POST", "/reload").json["changed"] is False
    assert loads == []
    write(export, seed=1)
    replies = []
    first = threading.Thread(target=lambda: replies.append(Client(client.port).send("POST", "/reload")), daemon=True)
    first.start()
    assert began.wait(20)
    refused = client.send("POST", "/reload")
    assert refused.status == 503 and refused.headers["retry-after"] == "1" and len(loads) == 1
    go_on.set()
    first.join(20)
    assert replies[0].json["changed"] is True
    assert client.send("POST", "/reload").json["changed"] is False and len(loads) == 1


def test_under_load_every_answer_is_whole_and_from_one_export(export, tmp_path, serving):
    client, _ = serving(look_seconds=0.01)
    right = []
    for seed in range(4):
        recommender = Recommender.load(write(tmp_path / f"{seed}", seed))
        right.append(json.dumps(asdict(recommender.recommend(HISTORY)), sort_keys=True))
    stop, seen, wrong = threading.Event(), set(), []

    def ask() -> None:
        one = Client(client.port)
        while not stop.is_set():
            reply = one.ask(history=HISTORY)
            text = json.dumps(reply.json, sort_keys=True)
            if reply.status != 200 or text not in right:
                wrong.append(reply)
            seen.add(text)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for seed in (1, 2, 3):
            write(export, seed)
            until(client, Recommender.load(export).version[:12])
    finally:
        stop.set()
    for thread in threads:
        thread.join(20)
    assert wrong == [] and len(seen) >= 3
