"""What is known of users beside histories, over HTTP."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hse_dist import Recommender
from tests.export.served import Made
from tests.serve.serving import write

CHOICES: list[dict[str, Any]] = [
    {"features": {"age": 24, "tags": ["a", "ü"]}},
    {"features": {"age": 24, "tags": "a"}, "explain": True},
    {"features": {"age": [7, "x", True], "tags": []}},
    {"features": {}},
    {"features": None},
    {"features": {"tags": ["b", "nobody's", 3]}, "seen": True, "history": []},
]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return Made.random(0).write(tmp_path / "export")


def test_answers_are_those_of_the_recommender(export: Path, serving: Any) -> None:
    client, _ = serving()
    recommender, found = Recommender.load(export), []
    for choice in CHOICES:
        question = {"history": [103, 109, 1], "k": 5, **choice}
        reply = client.ask(**question)
        assert reply.status == 200 and reply.json == asdict(recommender.recommend(**question))
        found.append(reply.json)
    assert found[2]["unknown_features"] == {"age": [7, "x", True]} and found[3] == found[4]
    assert found[5]["items"] and found[5]["unknown_features"] == {"tags": ["nobody's", 3]}
    assert client.ask(history=[], features={"age": 24.0}).json == client.ask(history=[], features={"age": [24]}).json
    assert client.send("GET", "/healthz").json["features"] == ["age", "tags"]


WRONG: list[tuple[Any, str]] = [
    ({"agee": 24}, "no feature 'agee' of users. There are age, tags."),
    ({"x" * 9000: 24}, "no feature 'xxx"),
    ({"\ud800": 24}, "no feature '\\ud800'"),
    ({"age": None}, "body.features.age"),
    ({"age": 2.5}, "body.features.age"),
    ({"age": {"a": 1}}, "body.features.age"),
    ({"tags": "\ud800"}, "surrogates not allowed"),
    ({"tags": ["\ud800"]}, "surrogates not allowed"),
    (["age"], "body.features: Input should be a valid dictionary"),
    ({"tags": ["a"] * 4}, "body.features.tags"),
    ({"age": 1, "tags": 2, "other": 3}, "body.features: Dictionary should have at most 2 items"),
]


def test_what_is_wrong_is_told(serving: Any) -> None:
    client, _ = serving(max_features=2, max_values=3)
    for features, message in WRONG:
        reply = client.ask(history=[100], features=features)
        assert reply.status == 422 and message in reply.json["detail"] and len(reply.body) < 2000
    assert client.ask(history=[100], features={"age": 1, "tags": ["a"] * 3}).status == 200


def test_the_schema_has_the_features_of_the_export_that_answers(export: Path, tmp_path: Path, serving: Any) -> None:
    client, service = serving(look_seconds=1000, max_features=9, max_values=3)

    def said() -> dict[str, Any]:
        question = client.send("GET", "/openapi.json").json["components"]["schemas"]["Question"]
        return next(one for one in question["properties"]["features"]["anyOf"] if one["type"] == "object")

    before = said()
    assert list(before["properties"]) == ["age", "tags"] and before["additionalProperties"] is False
    assert before["maxProperties"] == 9
    assert [one.get("maxItems") for one in before["properties"]["age"]["anyOf"]] == [None, None, None, 3]
    write(export)  # without features
    service.look()
    assert said()["properties"] == {} and client.ask(history=[1000], features={"age": 24}).status == 422
