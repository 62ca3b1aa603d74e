"""The command itself: Ray Serve on this machine, from its first line to its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from hse_dist import Recommender
from hse_dist.cli.main import main
from hse_dist.processes import descendants, lives
from tests.serve.serving import Client, write
from tests.test_trust import is_loopback, listening

ROOT = Path(__file__).resolve().parents[2]
HISTORY = [1000, 1001, 1002, 7]


class Served:
    """The command, as a process, and all that it has started."""

    def __init__(self, folder: Path, export: Path, *words: str) -> None:
        self.log = folder / "serve.log"
        # as a user's shell has it: nothing that conftest.py sets
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hse_dist.cli", "serve", str(export), "--port", "0", *words],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**environment, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
                # what a shell runs in the background does not hear Ctrl-C, nor does what that starts
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.port = int(self.wait(r"Serving .* at http://127\.0\.0\.1:(\d+)", 120)[1])

    def wait(self, pattern: str, seconds: float) -> re.Match[str]:
        """What the log says, once it says it."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.log.read_text())):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.1)
        return found

    def replicas(self) -> list[int]:
        return [one.pid for one in descendants(self.process.pid) if "ServeReplica:hse-dist:recommender" in one.name]

    def end(self, number: signal.Signals | None, processes: int = 0) -> tuple[int, Any]:
        """Its exit code and result; nothing of it may be left, and there have been more `processes` than that."""
        family = {one.pid for one in descendants(self.process.pid)}
        if number is not None:
            self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        assert len(family) >= processes and not any(map(lives, family)), "processes are left"
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port)) != 0
        return self.process.returncode, json.loads(out)

    def kill(self) -> None:
        for pid in [one.pid for one in descendants(self.process.pid)] + [self.process.pid]:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def serve(tmp_path: Path, export: Path) -> Iterator[Any]:
    """`serve(*words)`: the command on the export of these tests."""
    started = []

    def start(*words: str) -> Served:
        started.append(Served(tmp_path, export, *words))
        return started[-1]

    yield start
    Client.close_all()
    for one in started:
        one.kill()


class Load(threading.Thread):
    """Asks without a pause, until the connection is refused."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.client, self.replies, self.stop = Client(port), [], threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.replies.append(self.client.ask(history=HISTORY))
            except (OSError, HTTPException):
                return


def test_without_ray_one_process_answers_and_ends_after_what_is_under_way(serve, export):
    served = serve("--replicas", "0", "--max-body-bytes", "1000")
    client, recommender = Client(served.port), Recommender.load(export)
    for k in range(1, 6):
        assert client.ask(history=HISTORY, k=k).json == asdict(recommender.recommend(HISTORY, k))
    found = listening(served.process.pid)
    assert len(found) == 1 and all(is_loopback(address) for address, _ in found)
    assert served.replicas() == []

    body = json.dumps({"history": HISTORY}).encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as slow:
        head = f"POST /recommend HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        slow.sendall(head.encode() + b"\r\n\r\n" + body[:5])
        while client.counted("hse_serve_in_flight") < 1:
            time.sleep(0.02)
        Client.close_all()
        served.process.send_signal(signal.SIGTERM)
        served.wait("Ending: requests under way are answered", 20)
        time.sleep(0.5)
        slow.sendall(body[5:])
        assert b" 200 " in slow.recv(4096)
    code, result = served.end(None)
    assert code == 0 and result["requests"] > 5 and result["errors"] == 0
    assert "Traceback" not in served.log.read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_replicas_answer_as_the_recommender_listen_on_loopback_and_leave_nothing(serve, export):
    served = serve("--replicas", "2", "--max-k", "50")
    client = Client(served.port)
    for k in range(1, 12):
        reply = client.ask(history=HISTORY, k=k, seen=k % 2 == 0, explain=k % 3 == 0)
        right = Recommender.load(export).recommend(HISTORY, k, seen=k % 2 == 0, explain=k % 3 == 0)
        assert reply.status == 200 and reply.json == asdict(right)
    assert client.ask(history=HISTORY, k=51).status == 422
    large = client.send("POST", "/recommend", b" " * (1 << 21), {"Content-Type": "application/json"})
    assert large.status == 413
    pieces = (b"7" * 1000 for _ in range(5))
    unread = Client(served.port).send("POST", "/reload", pieces, {"Transfer-Encoding": "chunked"})
    assert unread.status == 413

    found = listening(served.process.pid)
    programs = {program for _, program in found}
    assert any("ProxyActor" in program for program in programs) and any("gcs_server" in one for one in programs)
    assert [one for one in found if not is_loopback(one[0])] == []
    assert len(served.replicas()) == 2

    loads = [Load(served.port) for _ in range(3)]
    for load in loads:
        load.start()
    write(export, seed=1)
    after = asdict(Recommender.load(export).recommend(HISTORY))
    end = time.monotonic() + 30
    while any(client.ask(history=HISTORY).json != after for _ in range(8)):  # of both replicas
        assert time.monotonic() < end
    version = Recommender.load(export).version[:12]
    while client.counted(f'hse_serve_replicas{{version="{version}"}}') < 2:
        assert time.monotonic() < end
    code, result = served.end(signal.SIGTERM, processes=6)
    for load in loads:
        load.join(20)
    assert code == 0, served.log.read_text()
    statuses = [reply.status for load in loads for reply in load.replies]
    # at the end others are told to come again; those whose connection breaks have no status
    assert set(statuses) == {200, 503} and statuses.count(200) > 50
    assert result["requests"] >= 12 and result["errors"] >= 2
    assert "Traceback" not in served.log.read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_a_replica_that_dies_is_replaced_and_ctrl_c_ends_it(serve):
    served = serve()
    client = Client(served.port)
    for _ in range(5):
        assert client.ask(history=HISTORY).status == 200
    (replica,) = served.replicas()
    time.sleep(2.5)  # its counts have been told
    os.kill(replica, signal.SIGKILL)
    end = time.monotonic() + 60
    while client.ask(history=HISTORY).status != 200 or served.replicas() == [replica]:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert client.counted('hse_serve_requests_total{path="/recommend",status="200"}') >= 6
    code, _ = served.end(signal.SIGINT)
    assert code == 0


def test_mistakes_are_one_message_and_start_nothing(tmp_path, export, capfd, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        for words, message in (
            ([str(tmp_path / "none")], "There is no export"),
            ([str(export), "--port", taken], "Nobody can listen on 127.0.0.1"),
            ([str(export), "--host", "192.0.2.1"], "Nobody can listen on 192.0.2.1"),
            ([str(export), "--port", "70000"], "port: Input should be less than or equal to 65535"),
        ):
            assert main(["serve", *words]) == 2
            shown = capfd.readouterr()
            assert message in shown.err and "Traceback" not in shown.err and shown.out == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else object())
    assert main(["serve", str(export)]) == 2
    assert "pip install 'hse-dist[serve]'" in capfd.readouterr().err
