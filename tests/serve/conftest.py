"""An export, and the application that serves it, on a real HTTP server in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hse_dist.serve.app import make_app
from hse_dist.serve.options import Limits
from hse_dist.serve.service import Service
from tests.serve.serving import Client, running, write


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write(tmp_path / "export")


@pytest.fixture
def serving(export: Path) -> Iterator[Callable[..., tuple[Client, Service]]]:
    """`serving(max_k=3, …)`: the application with these limits; what `make_app` takes goes to it."""
    open_ones = []

    def start(place: Path = export, look_seconds: float = 0.05, threads: int = 2, **limits: int) -> Any:
        service = Service(place, Limits(**limits))
        app = make_app(service, Limits(**limits), threads=threads, look_seconds=look_seconds)
        block = running(app)
        port = block.__enter__()
        open_ones.append(block)
        return Client(port), service

    yield start
    Client.close_all()
    for block in open_ones:
        block.__exit__(None, None, None)
