"""A Ray cluster of one node with its dashboard, on loopback, that takes submitted jobs; a program of its own.

In: a number of cores. Out, one line of JSON: `address`, where jobs are submitted, and `token`, without which nobody
may. It ends when its standard input does, or with SIGTERM, and takes with it all that it has started.

Ray's dashboard and its jobs need ports; all of them are free ones, so that several heads fit on a machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hse_dist.preemption import ending
from hse_dist.simulate.nodes import simulated

PORTS = ("dashboard_port", "dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port")
SECONDS_TO_END = 30.0


@dataclass(frozen=True)
class Head:
    """Where jobs are submitted, and with what token."""

    address: str
    token: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client must find in its environment."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


@contextmanager
def head(cores: int = 2) -> Iterator[Head]:
    """A head for the block, as a process of its own."""
    root = str(Path(__file__).resolve().parents[2])
    # jobs are run by the `python` that the head finds
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "hse_dist.testing.head", str(cores)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root, "PATH": path},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Head(**json.loads(process.stdout.readline()))
    finally:
        process.stdin.close()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main() -> None:
    """Hold a head until standard input ends."""
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    options = {"include_dashboard": True, "dashboard_host": "127.0.0.1", **ports}
    with ending(), simulated(1, int(sys.argv[1]), **options):
        told = {"address": f"http://127.0.0.1:{ports['dashboard_port']}", "token": os.environ["RAY_AUTH_TOKEN"]}
        print(json.dumps(told), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
