"""What the application answers: the recommender's own numbers, health, schema, counts."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from hse_dist import Recommender
from hse_dist.serve.counts import Counts, page, without_gauges
from tests.serve.serving import ITEMS, Client, write

STRANGE = [5, "1000", -(2**70), "", "ü✓"]


def questions(ids: list, count: int) -> list[dict]:
    generator = np.random.default_rng(3)
    found = []
    for number in range(count):
        some = [ids[place] for place in generator.integers(0, ITEMS, generator.integers(0, 12))]
        question = {"history": some + STRANGE[: number % 6], "k": int(generator.integers(1, 30))}
        if number % 2:
            question["seen"] = True
        if number % 3 == 1:
            question["allow"] = [ids[place] for place in generator.integers(0, ITEMS, 40)]
        if number % 3 == 2:
            question["deny"] = [ids[place] for place in generator.integers(0, ITEMS, 40)] + STRANGE
        if number % 4 == 3:
            question["explain"] = True
        found.append(question)
    return found


@pytest.mark.parametrize("ids", [list(range(1000, 1000 + ITEMS)), [f"b{i}" for i in range(ITEMS)]], ids=["int", "str"])
def test_answers_are_those_of_the_recommender_number_by_number(tmp_path, serving, ids):
    folder = write(tmp_path / "e", ids=ids)
    client, _ = serving(folder)
    recommender, answered = Recommender.load(folder), 0
    for question in questions(ids, 48):
        reply = client.ask(**question)
        assert reply.status == 200
        assert reply.json == asdict(recommender.recommend(**question))
        answered += len(reply.json["items"])
    assert answered > 300


def test_defaults_are_those_of_the_recommender(export, serving):
    client, _ = serving()
    history = [1000, 1001, 1002]
    assert client.ask(history=history).json == asdict(Recommender.load(export).recommend(history))
    assert client.ask(history=[1000.0, 1001, 1002.0], k=10.0).json == client.ask(history=history).json
    empty = {"items": [], "scores": [], "unknown": [], "reasons": None, "unknown_features": {}}
    assert client.ask(history=[]).json == empty


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, "body.history: Field required"),
        ({"history": 7}, "body.history: Input should be a valid list"),
        ({"history": [1.5]}, "body.history.0"),
        ({"history": [True]}, "body.history.0"),
        ({"history": [None]}, "body.history.0"),
        ({"history": [1], "k": 0}, "body.k: Input should be greater than or equal to 1"),
        ({"history": [1], "k": "3"}, "body.k: Input should be a valid integer"),
        ({"history": [1], "top": 3}, "body.top: Extra inputs are not permitted"),
        ({"history": ["\ud800"]}, "surrogates not allowed"),
        ({"history": [1], "deny": ["\ud800"]}, "surrogates not allowed"),
        ({"history": ["x", 2.5] * 50}, "; and 95 more"),
        ({"history": [1], "y" * 100_000: 1, "z" * 100_000: 1}, f"body.{'y' * 64}: Extra inputs"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong_with_it(serving, question, message):
    client, _ = serving()
    reply = client.ask(**question)
    assert reply.status == 422 and message in reply.json["detail"] and len(reply.body) < 2000


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"9" * 5000, b'{"history": [NaN]}', b"\xff\xfe", b"null"])
def test_a_body_that_is_no_question_is_no_failure_of_ours(serving, body):
    client, _ = serving()
    reply = client.send("POST", "/recommend", body, {"Content-Type": "application/json"})
    assert reply.status in (400, 422) and reply.json["detail"]
    assert client.ask(history=[1000]).status == 200


def test_health_names_the_content_and_other_paths_are_not_there(export, serving):
    client, _ = serving()
    version = Recommender.load(export).version[:12]
    wanted = {"status": "ok", "version": version, "items": ITEMS, "features": []}
    assert client.send("GET", "/healthz").json == wanted
    assert client.send("GET", "/docs").status == 404  # it would load scripts from elsewhere
    assert client.send("GET", "/recommend").status == 405


def test_the_schema_has_the_limits_of_this_server(serving):
    client, _ = serving(max_k=7, max_history=5)
    fields = client.send("GET", "/openapi.json").json["components"]["schemas"]["Question"]["properties"]
    assert fields["k"]["maximum"] == fields["k"]["default"] == 7 and fields["history"]["maxItems"] == 5


def test_requests_errors_times_and_the_version_are_counted(export, serving):
    client, _ = serving()
    for k in (1, 2, 3, 0):
        client.ask(history=[1000, 1, 2], k=k)
    client.send("GET", "/no/such/path")
    assert client.counted('hse_serve_requests_total{path="/recommend",status="200"}') == 3
    assert client.counted('hse_serve_requests_total{path="/recommend",status="422"}') == 1
    assert client.counted('hse_serve_errors_total{path="/recommend",status="422"}') == 1
    assert client.counted('hse_serve_errors_total{path="/recommend",status="200"}') == 0
    assert client.counted('hse_serve_requests_total{path="other",status="404"}') == 1
    assert client.counted('hse_serve_seconds_count{path="/recommend"}') == 4
    assert 0 < client.counted('hse_serve_seconds_sum{path="/recommend"}') < 4
    assert client.counted("hse_serve_unknown_ids_total") == 6
    assert client.counted("hse_serve_in_flight") == 0
    version = client.send("GET", "/healthz").json["version"]
    assert client.counted(f'hse_serve_replicas{{version="{version}"}}') == 1
    assert client.send("GET", "/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_bug_of_ours_is_a_500_that_tells_nothing_and_is_counted(serving, caplog):
    client, service = serving()
    answer = service.answer
    service.answer = lambda question: 1 // 0
    reply = client.ask(history=[1000])
    assert reply.status == 500 and b"division" not in reply.body
    service.answer = answer
    client = Client(client.port)  # the server has closed the other one
    assert client.ask(history=[1000]).status == 200
    assert client.counted('hse_serve_errors_total{path="/recommend",status="500"}') == 1
    assert client.counted("hse_serve_in_flight") == 0


def test_a_page_is_the_sum_of_all_replicas_and_counters_of_those_that_ended_stay():
    here, there, gone = Counts(), Counts(), Counts()
    for counts, requests in ((here, 2), (there, 3), (gone, 5)):
        counts.version("old" if counts is gone else "new")
        for _ in range(requests):
            counts.request("/recommend", 200, 0.003)
    there.request("/recommend", 503, 0.3)
    lines = page([here.snapshot(), there.snapshot(), without_gauges(gone.snapshot())]).decode().splitlines()
    assert 'hse_serve_requests_total{path="/recommend",status="200"} 10.0' in lines
    assert 'hse_serve_errors_total{path="/recommend",status="503"} 1.0' in lines
    assert 'hse_serve_seconds_bucket{le="0.005",path="/recommend"} 10.0' in lines
    assert 'hse_serve_seconds_bucket{le="+Inf",path="/recommend"} 11.0' in lines
    assert 'hse_serve_replicas{version="new"} 2.0' in lines and not any('"old"' in line for line in lines)
