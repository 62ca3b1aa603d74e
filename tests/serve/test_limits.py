"""What one request, and all together, may take."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from hse_dist.errors import ConfigError
from hse_dist.serve.options import parse_options
from tests.serve.serving import Client

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("limits", "right", "wrong", "message"),
    [
        ({"max_k": 5}, {"k": 5}, {"k": 6}, "body.k: Input should be less than or equal to 5"),
        ({"max_history": 2}, {"history": [1, 2]}, {"history": [1, 2, 3]}, "body.history: List should have at most 2"),
        ({"max_filter": 2}, {"allow": [1, 2]}, {"allow": [1, 2, 3]}, "body.allow: List should have at most 2"),
        ({"max_filter": 2}, {"deny": [1, 2]}, {"deny": [1, 2, 3]}, "body.deny: List should have at most 2"),
        ({"max_explained": 3}, {"k": 3}, {"k": 4, "explain": True}, "k = 4 is more than 3"),
    ],
)
def test_a_question_has_limits(serving, limits, right, wrong, message):
    client, _ = serving(**limits)
    assert client.ask(**{"history": [1000], "k": 3, **right}).status == 200
    reply = client.ask(**{"history": [1000], "k": 3, **wrong})
    assert reply.status == 422 and message in reply.json["detail"]


def test_reasons_have_a_limit(serving):
    client, _ = serving(max_reason_items=2)
    question = {"history": list(range(1000, 1100)), "k": 5, "explain": True}
    found = [len(reason["items"]) for reasons in client.ask(**question).json["reasons"] for reason in reasons]
    assert max(found) == 2


def test_a_body_has_a_limit_whether_it_says_its_length_or_not(serving):
    client, _ = serving(max_body_bytes=1000)
    body = json.dumps({"history": [1000]}).encode()
    full = body + b" " * (1000 - len(body))
    for fits, status in ((full, 200), (full + b" ", 413)):
        assert client.send("POST", "/recommend", fits, JSON).status == status
        pieces = (fits[at : at + 100] for at in range(0, len(fits), 100))
        reply = Client(client.port).send("POST", "/recommend", pieces, {**JSON, "Transfer-Encoding": "chunked"})
        assert reply.status == status
    assert "larger than 1000 bytes" in reply.json["detail"]
    assert client.counted('hse_serve_errors_total{path="/recommend",status="413"}') == 2


def test_a_body_without_end_is_refused_before_it_has_come(serving):
    client, _ = serving(max_body_bytes=1000)
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(b"POST /recommend HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n" + (b"400\r\n" + b"7" * 0x400 + b"\r\n"))
        assert b" 413 " in connection.recv(4096)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/reload"), ("GET", "/healthz"), ("GET", "/metrics"), ("GET", "/recommend"), ("POST", "/no/such/path")],
)
def test_where_nobody_reads_a_body_none_is_taken(serving, method, path):
    client, service = serving()
    service.look = lambda again=False: 1 // 0
    for head in ("Transfer-Encoding: chunked\r\n\r\n400\r\n" + "7" * 0x400, "Content-Length: 9999\r\n\r\n7"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: h\r\n{head}".encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until the server closes it
        assert b" 413 " in answer and b"takes no body" in answer
    assert (
        client.counted(f'hse_serve_errors_total{{path="{path if "such" not in path else "other"}",status="413"}}') == 2
    )


@pytest.mark.parametrize(
    ("origin", "status"),
    [(None, 200), ("http://127.0.0.1:PORT", 200), ("https://example.org", 403), ("null", 403), ("http://[", 403)],
)
def test_a_page_of_another_origin_may_not_reload(serving, origin, status):
    client, _ = serving()
    headers = {"Origin": origin.replace("PORT", str(client.port))} if origin else {}
    assert client.send("POST", "/reload", headers=headers).status == status


def test_what_is_too_much_at_once_is_told_to_come_again(serving):
    client, service = serving(concurrency=3, threads=1)
    began, go_on, answer = threading.Semaphore(0), threading.Event(), service.answer

    def slow(question):
        began.release()
        assert go_on.wait(20)
        return answer(question)

    service.answer = slow
    replies = []
    clients = [Client(client.port) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda one=one: replies.append(one.ask(history=[1000])), daemon=True) for one in clients
    ]
    for thread in threads:
        thread.start()
    assert began.acquire(timeout=20)  # one is computed, two wait for the thread
    end = time.monotonic() + 20
    while client.counted("hse_serve_in_flight") < 3:
        assert time.monotonic() < end
    refused = client.ask(history=[1000])
    assert refused.status == 503 and refused.headers["retry-after"] == "1"
    assert client.send("GET", "/healthz").status == 200
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert [one.status for one in replies] == [200] * 3
    assert client.ask(history=[1000]).status == 200
    assert client.counted("hse_serve_in_flight") == 0
    assert client.counted('hse_serve_errors_total{path="/recommend",status="503"}') == 1


def test_a_request_has_a_time(serving):
    client, service = serving(seconds=1)
    go_on, answer = threading.Event(), service.answer
    service.answer = lambda question: go_on.wait(20) and answer(question)
    reply = client.ask(history=[1000])
    go_on.set()
    assert reply.status == 408 and "within 1 s" in reply.json["detail"]
    assert client.ask(history=[1000]).status == 200
    assert client.counted("hse_serve_in_flight") == 0


def test_a_server_that_ends_takes_no_more_questions(serving):
    client, service = serving()
    service.ending = True
    reply = client.ask(history=[1000])
    assert reply.status == 503 and reply.headers["retry-after"] == "1" and "ending" in reply.json["detail"]
    assert client.send("GET", "/healthz").status == 200


def test_wrong_options_are_one_message():
    with pytest.raises(ConfigError, match=r"port: .*; limits\.max_k: .*; colour: "):
        parse_options({"export": "e", "port": 70_000, "limits": {"max_k": 0}, "colour": "red"})
