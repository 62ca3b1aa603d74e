"""The nodes of a simulated cluster: a raylet each, on loopback addresses 127.0.0.1, 127.0.0.2 and so on.

In: how many nodes, and cores of each. Out: the address of their head; nodes that die, that are cut off, and that come.
After the block all of them are gone, however it ends: by an error, by Ctrl-C or by SIGTERM.

Ray listens on all interfaces for a node whose address is not exactly 127.0.0.1, so a cluster gets a token of its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hse_dist.errors import ResourceError
from hse_dist.preemption import undisturbed
from hse_dist.processes import descendants, family, kill, kill_with_children, lives, nothing_left, send

OBJECT_STORE_BYTES = 128 << 20
"""Of a node, in shared memory; a run sends its tables by other ways."""
SECONDS_TO_NOTICE = 90.0
"""For Ray to find out that a node is dead, and for a node to join."""
SECONDS_TO_END = 5.0
LOOK_SECONDS = 0.2
log = logging.getLogger(__name__)


class Nodes:
    """What runs; made by `simulated`.

    Args:
        cluster: Ray's own.
        options: of every node.
    """

    def __init__(self, cluster: Any, options: dict[str, Any]) -> None:
        self._cluster, self._options = cluster, options
        self._nodes: dict[str, Any] = {}
        self._parted: dict[str, tuple[Any, list[int]]] = {}
        self._made = 0
        self.address = ""
        """Where a driver finds the cluster, once there is a head."""

    @property
    def addresses(self) -> list[str]:
        """Of the nodes that live, the head first."""
        return list(self._nodes)

    @property
    def head(self) -> str:
        """Its address; the driver and the SparsityServer run there."""
        return self.addresses[0]

    def add(self) -> str:
        """Start one more node and wait for it; its address, which no node had before.

        Raises:
            ResourceError: it did not come.
        """
        self._made += 1
        address = f"127.0.0.{self._made}"
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self._nodes[address] = self._cluster.add_node(node_ip_address=address, **self._options)
        except Exception as error:  # Ray raises whatever it likes here
            raise ResourceError(f"The simulated node {address} did not start: {error}") from None
        finally:
            signal.signal(signal.SIGTERM, handler)  # a node takes it for itself
        self.address = str(self._cluster.address)
        return address

    def kill(self, address: str) -> float:
        """Let a node die at once, with all that runs on it; the seconds that Ray took to notice.

        Raises:
            ResourceError: Ray did not notice.
        """
        node, began = self._nodes.pop(address), time.monotonic()
        kill_with_children(_raylet(node))
        self._cluster.remove_node(node, allow_graceful=False)  # for its books: there is nothing left to end
        self._wait_until_noticed(address)
        return time.monotonic() - began

    def part(self, address: str) -> float:
        """Cut a node off: all that runs on it falls silent (SIGSTOP) with its connections open, as behind a network
        that loses every packet; the seconds that Ray took to give it up. It is none of `addresses` any more.

        Raises:
            ResourceError: Ray did not notice.
        """
        node, began = self._nodes.pop(address), time.monotonic()
        stopped: list[int] = []
        while new := [pid for pid in family(_raylet(node)) if pid not in stopped]:  # one may start while we look
            send(signal.SIGSTOP, new)
            stopped += new
        self._parted[address] = node, stopped
        self._cluster.worker_nodes.discard(node)  # from its books alone: `remove_node` would wait for it to end
        self._wait_until_noticed(address)
        return time.monotonic() - began

    def heal(self, address: str) -> None:
        """Let a node that was cut off speak again, which the cluster has given up: it must end by itself.

        Raises:
            ResourceError: something of it still runs.
        """
        node, pids = self._parted.pop(address)
        send(signal.SIGCONT, pids)
        end = time.monotonic() + SECONDS_TO_NOTICE
        while left := [pid for pid in pids if lives(pid)]:
            # until somebody has waited for a raylet that has ended, its workers take it for alive
            node.all_processes["raylet"][0].process.poll()
            if time.monotonic() > end:
                below = {one.pid: one.name for one in descendants(os.getpid())}
                what = ", ".join(f"{below.get(pid, '?')} ({pid})" for pid in left)
                kill(left)
                raise ResourceError(
                    f"{what} of the node {address} still run(s) {SECONDS_TO_NOTICE:.0f} s after it came back to a "
                    "cluster that had given it up."
                )
            time.sleep(LOOK_SECONDS)

    def _wait_until_noticed(self, address: str) -> None:
        try:
            self._cluster.wait_for_nodes(SECONDS_TO_NOTICE)
        except TimeoutError:
            raise ResourceError(
                f"Ray did not notice within {SECONDS_TO_NOTICE:.0f} s that the node {address} is dead."
            ) from None

    def end(self) -> None:
        """End all nodes, the head last."""
        for _, pids in self._parted.values():
            kill(pids)
        for address in reversed(self.addresses):
            self._cluster.remove_node(self._nodes.pop(address))


def _raylet(node: Any) -> int:
    """The process above all that a node runs, but for the head's own."""
    return int(node.all_processes["raylet"][0].process.pid)


@contextmanager
def simulated(count: int, cores: int, **more: Any) -> Iterator[Nodes]:
    """A cluster of `count` nodes, the head among them, with `cores` cores each, for the block.

    Args:
        more: Ray's own parameters of a node.

    Raises:
        ResourceError: a node did not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="hse-"))  # short: a socket's path has a limit of 107 bytes
    options = {
        "num_cpus": cores,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "temp_dir": str(folder),
        **more,
    }
    with _removed(folder), _environment(), nothing_left(SECONDS_TO_END):
        from ray.cluster_utils import Cluster

        nodes = Nodes(Cluster(), options)
        with _default_cluster(nodes):
            try:
                for _ in range(count):
                    nodes.add()
                yield nodes
            finally:
                with undisturbed():
                    nodes.end()


@contextmanager
def _environment() -> Iterator[None]:
    """What Ray and its workers must find in their environment; some of it before Ray is imported."""
    here = str(Path(__file__).resolve().parents[2])
    ours = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it asks the dashboard
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _default_cluster(nodes: Nodes) -> Iterator[None]:
    """Ray lets `ray.init()` on this machine join what was started last; after the block that is as it was before."""
    from ray._private.utils import get_ray_address_file

    file = Path(get_ray_address_file(None))
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)  # Ray makes it for a cluster in its own place alone
    try:
        yield
    finally:
        if file.exists() and file.read_text() == nodes.address:
            file.unlink()
            if before is not None:
                file.write_text(before)


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
