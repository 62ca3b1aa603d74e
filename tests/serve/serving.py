"""Exports to serve, an HTTP client that keeps its connection, and an HTTP server in a thread of this process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import uvicorn

from hse_dist.export.format import RowBlock, write_export

ITEMS, DIMS, LIVE = 200, 64, 8


def write(folder: Path, seed: int = 0, ids: Any = None) -> Path:
    """An export of random rows."""
    generator = np.random.default_rng(seed)
    columns = np.argsort(generator.random((ITEMS, DIMS)), axis=1)[:, :LIVE]
    values = generator.standard_normal(ITEMS * LIVE).astype(np.float32)
    gains = np.where(generator.random(ITEMS) < 0.1, -1.0, 1.0).astype(np.float32)
    block = RowBlock(np.arange(0, ITEMS * LIVE + 1, LIVE), columns.ravel().astype(np.int64), values, gains)
    write_export(folder, [block], item_ids=pa.array(ids or range(1000, 1000 + ITEMS)), dims=DIMS, row_norm="free")
    return folder


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that is kept, until `close_all`."""

    all: ClassVar[list[HTTPConnection]] = []

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection = HTTPConnection("127.0.0.1", port, timeout=30)
        Client.all.append(self.connection)

    @classmethod
    def close_all(cls) -> None:
        while cls.all:
            cls.all.pop().close()

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        chunked = not isinstance(body, bytes | None) and hasattr(body, "__next__")
        self.connection.request(method, path, body, headers or {}, encode_chunked=chunked)
        answer = self.connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def ask(self, **question: Any) -> Reply:
        return self.send("POST", "/recommend", json.dumps(question).encode(), {"Content-Type": "application/json"})

    def counted(self, line: str) -> float:
        """A number of the page for Prometheus; 0 where there is none."""
        found = [
            one.rpartition(" ")[2]
            for one in self.send("GET", "/metrics").body.decode().splitlines()
            if one.rpartition(" ")[0] == line
        ]
        return float(found[0]) if found else 0.0


@contextmanager
def running(app: Any) -> Iterator[int]:
    """The port of a server, for the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
