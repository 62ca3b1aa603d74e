"""schemathesis against the application's own schema: no crash, and answers that are as the schema says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from hse_dist.serve.app import make_app
from hse_dist.serve.options import Limits
from hse_dist.serve.service import Service
from tests.export.served import Made

LIMITS = Limits(max_k=50, max_history=40, max_filter=60, max_explained=10, max_values=30)
OPERATIONS = {("POST", "/recommend"): 150, ("POST", "/reload"): 15, ("GET", "/healthz"): 15, ("GET", "/metrics"): 15}
"""Examples of each kind."""


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Any:
    service = Service(Made.random(0).write(tmp_path_factory.mktemp("served") / "export"), LIMITS)
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(service, LIMITS))


def test_all_operations_are_tried(described: Any) -> None:
    found = {(one.ok().method.upper(), one.ok().path) for one in described.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode", "least"),
    [
        ("POST", "/recommend", GenerationMode.POSITIVE, {200: 100}),
        # JSON that is wrong somewhere
        ("POST", "/recommend", GenerationMode.NEGATIVE, {422: 100}),
        *((method, path, GenerationMode.POSITIVE, {200: 1}) for method, path in OPERATIONS if path != "/recommend"),
    ],
)
def test_no_request_crashes_it_and_all_answers_are_as_described(
    described: Any, method: str, path: str, mode: GenerationMode, least: dict[int, int]
) -> None:
    operation, statuses = described[path][method], []

    @settings(max_examples=OPERATIONS[method, path], deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        statuses.append(case.call_and_validate().status_code)

    check()
    for status, count in least.items():
        assert statuses.count(status) >= count
