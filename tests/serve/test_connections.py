"""The server without Ray: clients that ask nothing take it from nobody, and its end is as the page says."""

from __future__ import annotations

import resource
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest

from hse_dist.errors import ServeError
from hse_dist.serve import here
from hse_dist.serve.connections import Bounded, most_connections
from hse_dist.serve.here import serving_here
from hse_dist.serve.options import parse_options
from tests.serve.serving import Client

HALF = b"POST /recommend HTTP/1.1\r\nHost: h\r\nContent-"
QUESTION = HALF + b"""Type: application/json\r\nContent-Length: 19\r\n\r\n{"history": [1000]}"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(export: Any) -> Any:
    """`start()`: port and server, until the test ends."""
    with ExitStack() as stack:

        def begin() -> Any:
            options = parse_options({"export": str(export), "port": free_port(), "replicas": 0})
            return options.port, stack.enter_context(serving_here(options))

        yield begin
        Client.close_all()


def connected(port: int, sent: bytes = HALF) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(sent)
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the server closes it, while we wait."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_half_a_head_is_waited_for_only_so_long(start, monkeypatch):
    monkeypatch.setattr(Bounded, "head_seconds", 0.3)
    port, _ = start()
    for sent in (b"", HALF, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"):
        with connected(port, sent) as connection:
            if sent.endswith(b"\r\n\r\n"):
                assert b" 200 " in connection.recv(1000)
                connection.sendall(HALF)  # a second one
            connection.settimeout(3)  # uvicorn's own limit for what is idle is longer
            assert ended(connection)
    with connected(port, QUESTION[:-5]) as slow:  # the head is there
        time.sleep(0.6)
        slow.sendall(QUESTION[-5:])
        assert b" 200 " in slow.recv(1000)


def test_those_that_ask_nothing_make_room_and_questions_are_answered(start, monkeypatch):
    monkeypatch.setattr(here, "most_connections", lambda: 40)
    port, running = start()
    kept = Client(port)
    with ExitStack() as stack:
        first = stack.enter_context(connected(port))
        others = [stack.enter_context(connected(port)) for _ in range(60)]
        assert kept.send("GET", "/healthz").status == 200
        assert Client(port).ask(history=[1000]).status == 200
        assert ended(first)
        others[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            others[-1].recv(1)
    running.look()


def test_there_are_fewer_connections_than_file_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, before[1]))
        assert most_connections() == 500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_at_the_end_others_are_told_to_come_again_and_all_is_counted(start):
    port, running = start()
    assert Client(port).ask(history=[1000]).status == 200
    with connected(port, QUESTION[:-5]) as slow:
        while running.total("hse_serve_in_flight") < 1:
            time.sleep(0.01)
        drain = threading.Thread(target=running.drain, daemon=True)
        drain.start()
        client, end = Client(port), time.monotonic() + 20
        while (reply := client.ask(history=[1000])).status != 503:
            assert time.monotonic() < end
        assert "ending" in reply.json["detail"] and drain.is_alive()
        told = running.total("hse_serve_errors_total")
        slow.sendall(QUESTION[-5:])
        assert b" 200 " in slow.recv(4096)
    drain.join(20)
    assert not drain.is_alive() and running.total("hse_serve_in_flight") == 0
    assert running.total("hse_serve_errors_total") == told == 1
    assert running.total("hse_serve_requests_total") >= 3
    with pytest.raises(ServeError):
        running.look()
