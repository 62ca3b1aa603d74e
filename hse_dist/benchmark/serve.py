"""`benchmark serve`: requests a second, and milliseconds, of `hse-dist serve` over loopback.

In: a shape. Out: for growing numbers of clients, each of which asks without a pause over a connection that it keeps:
requests a second, the median and the 99th percentile of what a client waits, and answers that were none. Beside them
`Recommender.recommend` in this process, so that one sees what HTTP, Ray Serve and the crowd add; and what a request
costs the server's processes in time of a core, which says more than the others on a machine that has other work.

The server is the command itself, in a process of its own, on an export that this writes. Clients are threads of this
process, which share the cores with it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from pathlib import Path

import numpy as np

from hse_dist.benchmark.report import Chart, Report
from hse_dist.benchmark.retrieve import exported, make_histories
from hse_dist.errors import ServeError
from hse_dist.export.recommender import Recommender
from hse_dist.processes import family

SECONDS_TO_START, SECONDS_TO_END = 180.0, 60.0
SECONDS_TO_ANSWER = 60.0
QUESTIONS = 256
"""Distinct histories, which come again and again."""
WARM = 20
"""Requests of a client that do not count."""
JSON = {"Content-Type": "application/json"}


@dataclass
class Waited:
    """What the clients of a round met."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    took: float = 0.0
    core_seconds: float = 0.0
    requests: int = 0

    def row(self, name: str) -> dict[str, str | float | int]:
        """A row of the table."""
        half, most = np.percentile(self.seconds, (50, 99)) * 1e3 if self.seconds else (float("nan"), float("nan"))
        return {
            "clients": name,
            "requests a second": len(self.seconds) / self.took,
            "p50, ms": float(half),
            "p99, ms": float(most),
            "core ms a request": self.core_seconds / max(1, self.requests) * 1e3,
            "errors": self.errors,
        }


def benchmark_serve(
    *,
    items: int = 100_000,
    live: int = 32,
    dims: int = 4096,
    history: int = 50,
    top: int = 20,
    replicas: int = 1,
    threads: int = 1,
    clients: Sequence[int] = (1, 4, 16),
    seconds: int = 10,
) -> Report:
    """Requests a second, and what a client waits.

    Args:
        items, live, dims: of the export: items, live entries each, columns. history: mean items of a question.
        top: items of an answer. replicas, threads: of the server. clients: at once, round by round.
        seconds: of a round.

    Returns:
        figures of the last round; a row for each, and one of the recommender alone.

    Raises:
        ServeError: the server did not start, or did not end well.
    """
    questions = _questions(items, history)
    bodies = [json.dumps({"history": one, "k": top}).encode() for one in questions]
    with exported(items, live, dims) as folder:
        rows = [_alone(folder, questions, top, seconds).row("none: recommend() alone")]
        with _server(folder, replicas, threads) as (port, process):
            found = [_round(port, process, bodies, count, seconds) for count in clients]
    rows += [one.row(str(count)) for count, one in zip(clients, found, strict=True)]
    last = rows[-1]
    return Report(
        kind="serve",
        figures={
            "p50_milliseconds": last["p50, ms"],
            "p99_milliseconds": last["p99, ms"],
            "requests_per_second": last["requests a second"],
            "core_milliseconds": last["core ms a request"],
            "errors": sum(one.errors for one in found),
            "clients": clients[-1],
        },
        rows=rows,
        shape={
            "items": items,
            "live": live,
            "dims": dims,
            "history": history,
            "top": top,
            "replicas": replicas,
            "threads": threads,
            "seconds": seconds,
        },
        notes=["clients wait for an answer before they ask again, and share this machine's cores with the server"],
        chart=Chart(
            title=f"hse-dist serve, {items:,} items".replace(",", " "),
            y_label="milliseconds (log)",
            x_label="clients at once",
            series={name: [float(row[f"{name}, ms"]) for row in rows[1:]] for name in ("p50", "p99")},
            x=[str(count) for count in clients],
            kind="bars",
            log_y=True,
        ),
    )


def _questions(items: int, history: int) -> list[list[int]]:
    offsets, rows = make_histories(items, QUESTIONS, history)
    return [rows[first:last].tolist() for first, last in pairwise(offsets)]


def _alone(folder: str, questions: list[list[int]], top: int, seconds: float) -> Waited:
    recommender, found = Recommender.load(folder, 1), Waited()
    recommender.prepare()  # as a server does
    for question in questions[:WARM]:
        recommender.recommend(question, top)
    began, core_began = time.perf_counter(), time.process_time()
    while found.took < seconds:
        for question in questions:
            start = time.perf_counter()
            recommender.recommend(question, top)
            found.seconds.append(time.perf_counter() - start)
        found.took = time.perf_counter() - began
    found.core_seconds, found.requests = time.process_time() - core_began, len(found.seconds)
    return found


@contextmanager
def _server(folder: str, replicas: int, threads: int) -> Iterator[tuple[int, int]]:
    """The port of a server on this export, for the block, and its process."""
    words = ["serve", folder, "--port", "0", "--replicas", str(replicas), "--threads", str(threads)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "hse_dist.cli", *words],
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            yield _port(process, log), process.pid
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(SECONDS_TO_END)
    if process.returncode:
        raise ServeError(f"The server ended with {process.returncode}.")


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + SECONDS_TO_START
    while not (found := re.search(r"Serving .* at http://127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))):
        if process.poll() is not None or time.monotonic() > end:
            raise ServeError(f"The server did not start: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.1)
    return int(found[1])


def _round(port: int, process: int, bodies: list[bytes], clients: int, seconds: float) -> Waited:
    """So many clients, for so long; what they met together."""
    parts, go = [Waited() for _ in range(clients)], threading.Barrier(clients)
    threads = [
        threading.Thread(target=_ask, args=(port, bodies[number:] + bodies[:number], seconds, part, go))
        for number, part in enumerate(parts)
    ]
    began = _core_seconds(process)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waited = [one for part in parts for one in part.seconds]
    return Waited(
        waited,
        sum(part.errors for part in parts),
        max(part.took for part in parts),
        _core_seconds(process) - began,
        len(waited) + WARM * clients,
    )


def _core_seconds(process: int) -> float:
    """That it and all below it have used."""
    found = 0.0
    for pid in family(process):
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        found += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _ask(port: int, bodies: list[bytes], seconds: float, found: Waited, go: threading.Barrier) -> None:
    connection, number = HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_ANSWER), 0

    def once() -> None:
        nonlocal number
        body, number = bodies[number % len(bodies)], number + 1
        start = time.perf_counter()
        try:
            connection.request("POST", "/recommend", body, JSON)
            answer = connection.getresponse()
            answer.read()
            good = answer.status == 200
        except (OSError, HTTPException):
            connection.close()
            good = False
        if good:
            found.seconds.append(time.perf_counter() - start)
        else:
            found.errors += 1

    for _ in range(WARM):
        once()
    go.wait()
    found.seconds.clear()
    began = time.perf_counter()
    while found.took < seconds:
        once()
        found.took = time.perf_counter() - began
    connection.close()
