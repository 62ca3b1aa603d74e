"""`hse-dist simulate`: the job `train` on a cluster of several nodes that are all this machine.

In: a configuration, and the shape of the cluster. Out: the job's own result, which node ran what, and what a node's
loss cost. The driver is the program `hse-dist train`, a process of its own that finds the cluster as any driver does;
this process holds the nodes and looks on.

A cluster that loses a node has no room for its workers. What manages clusters (KubeRay, `ray up`) brings another
machine; so does this one, once Ray has noticed. A node that was cut off comes back when the run goes on without it,
which is the worst time: its ranks take themselves for those of the run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hse_dist.config import Config, load_config
from hse_dist.errors import ConfigError, PreemptedError, TrainingError, UserError
from hse_dist.placement import Placement, by_node, read_placement
from hse_dist.preemption import ending, undisturbed
from hse_dist.run_folder import RunFolder
from hse_dist.screen import show_texts
from hse_dist.simulate.nodes import Nodes, simulated

LOOK_SECONDS = 0.2
MORE_SECONDS = 15.0
"""Beyond `cluster.grace_seconds`, after which a driver that was asked to stop is killed."""
PROGRAM = ("hse_dist.cli", "train")
"""The driver: a module, and its first word."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loss:
    """What is to happen to a node that is not the head, once training has come to `step`.

    Attributes:
        how: `killed`; or `parted`: silent until the run goes on without it, and then back.
    """

    how: str
    step: int


@dataclass
class Lost:
    """A node that was lost.

    Attributes:
        how: as in `Loss`.
        step: the last one that the metrics told of then.
        ranks: that ran on it.
        noticed_seconds: until Ray knew.
        replacement: the node that came for it.
        recovered_seconds: from the loss until the run was further than before; None: not yet.
    """

    node: str
    how: str
    step: int
    ranks: list[int]
    noticed_seconds: float
    replacement: str
    recovered_seconds: float | None = None


def simulate(
    config: str,
    overrides: Sequence[str],
    *,
    nodes: int,
    workers_per_node: int,
    loss: Loss | None = None,
    minutes: float = 30,
    program: Sequence[str] = PROGRAM,
) -> dict[str, Any]:
    """Train on a cluster of `nodes` nodes of this machine, the head among them.

    Args:
        overrides: settings; without them there is a worker for every place, and `cluster.placement` is `spread`.
        workers_per_node: places of a node; each has `cluster.cpus_per_worker` cores.
        loss: of a node, on the way.
        minutes: limit of the whole; after it the run ends, with a checkpoint.

    Raises:
        ConfigError: the settings do not fit such a cluster.
        UserError, TrainingError, PreemptedError: as the job ended; its own message stands above. Or the limit is over.
    """
    words = [f"cluster.workers={nodes * workers_per_node}", "cluster.placement=spread", *overrides]
    settings = load_config(config, words)
    _check(settings, nodes, workers_per_node, loss)
    end = time.monotonic() + 60 * minutes
    with ending(), simulated(nodes, workers_per_node * settings.cluster.cpus_per_worker) as cluster:
        log.info("%d nodes are up: %s", nodes, ", ".join(cluster.addresses))
        with _driver([*program, config, *words], cluster.address, settings.cluster.grace_seconds) as driver:
            watch = _Watch(RunFolder(settings), cluster, loss)
            while driver.process.poll() is None:
                if time.monotonic() > end:
                    raise TrainingError(f"The simulation did not end within {minutes:g} minutes (option --minutes).")
                watch.look()
                time.sleep(LOOK_SECONDS)
            watch.look()
            result = {**driver.result(), **watch.result()}
    if loss is not None and watch.lost is None:
        raise UserError(
            f"The run was over before step {loss.step}, at which a node was to be {loss.how}.",
            cause="Metrics tell of a step every train.log_every steps; and a run that is complete does not run again.",
        )
    return result


def _check(config: Config, nodes: int, workers_per_node: int, loss: Loss | None) -> None:
    cluster, places = config.cluster, nodes * workers_per_node
    problems = []
    if cluster.address is not None:
        problems.append("a simulation makes a cluster of its own: leave out cluster.address")
    if cluster.device != "cpu":
        problems.append(f'simulated nodes have no GPU: cluster.device = "{cluster.device}"')
    if cluster.fewest < 1 or cluster.most > places:
        problems.append(f"cluster.workers = {cluster.workers}, but {nodes} nodes have {places} places")
    if loss is not None and nodes < 2:
        problems.append(f"a node that is {loss.how} is one beside the head: --nodes 2 or more")
    if problems:
        raise ConfigError("These settings do not fit a simulated cluster:\n" + "\n".join(f"  - {p}" for p in problems))


class _Driver:
    """The process that drives the run."""

    def __init__(self, words: Sequence[str], address: str, output: Path) -> None:
        self._output = output
        environment = {**os.environ, "RAY_ADDRESS": address}
        with output.open("wb") as out:
            # in a session of its own: Ctrl-C reaches this process alone, which then asks the driver to stop
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words], stdout=out, env=environment, start_new_session=True
            )

    def stop(self, seconds: float) -> None:
        """SIGTERM, with which a run writes a checkpoint; SIGKILL when the time is over."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.warning("The driver did not end within %.0f s and is killed", seconds)
            self.process.kill()
            self.process.wait()

    def result(self) -> dict[str, Any]:
        """What the job printed at its end.

        Raises:
            UserError, TrainingError, PreemptedError: it ended otherwise.
        """
        code = self.process.returncode
        if code:
            kinds = {UserError.exit_code: UserError, PreemptedError.exit_code: PreemptedError}
            kind = kinds.get(code, TrainingError)
            raise kind(f"The job ended with exit code {code}; its message stands above.")
        result: dict[str, Any] = json.loads(self._output.read_text(encoding="utf-8").splitlines()[-1])
        return result


@contextmanager
def _driver(words: Sequence[str], address: str, grace_seconds: float) -> Iterator[_Driver]:
    """A driver, which has ended after the block."""
    with tempfile.TemporaryDirectory() as folder:
        driver = _Driver(words, address, Path(folder) / "result")
        try:
            yield driver
        finally:
            with undisturbed():
                driver.stop(grace_seconds + MORE_SECONDS)


class _Watch:
    """Looks at a run from outside, by its files; loses a node when it is time."""

    def __init__(self, folder: RunFolder, nodes: Nodes, loss: Loss | None) -> None:
        self.folder, self.nodes, self.loss = folder, nodes, loss
        self.lost: Lost | None = None
        self._lost_at = 0.0
        # of an earlier run in this folder, perhaps
        self.placement, self._old_metrics, self._seen = read_placement(folder.placement), self._stamp(), False

    def look(self) -> None:
        """One look: show what changed, lose what is to be lost."""
        placement = read_placement(self.folder.placement)
        if placement is not None and placement != self.placement:
            self.placement, self._seen = placement, True
            self._show(placement)
        step = self.step() if self._seen else None
        if step is None:
            return
        if self.loss is not None and self.lost is None and step >= self.loss.step:
            self._lose(self.loss.how, step)
        elif self.lost is not None and self.lost.recovered_seconds is None and step > self.lost.step:
            self.lost.recovered_seconds = round(time.monotonic() - self._lost_at, 1)
            log.info("Recovered: step %d, after %.1f s", step, self.lost.recovered_seconds)
            if self.lost.how == "parted":
                log.info("The node %s is back", self.lost.node)
                self.nodes.heal(self.lost.node)
                log.info("The node %s found itself given up, and has ended", self.lost.node)

    def step(self) -> int | None:
        """The last step that the metrics of this run tell of."""
        if self._stamp() == self._old_metrics:
            return None
        try:
            return int(json.loads(self.folder.metrics.read_bytes().splitlines()[-1])["step"])
        except (OSError, IndexError, KeyError, ValueError):
            return None  # nothing yet, or a line that is just being written

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.folder.metrics.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def _lose(self, how: str, step: int) -> None:
        assert self.placement is not None
        of: dict[str, list[int]] = {node: [] for node in self.nodes.addresses if node != self.nodes.head}
        for rank, place in enumerate(self.placement["ranks"]):
            if place["node"] in of:
                of[place["node"]].append(rank)
        node = max(of, key=lambda node: (len(of[node]), node))
        log.info("Step %d: the node %s is %s, with %s", step, node, how, _ranks(of[node]))
        self._lost_at = time.monotonic()
        noticed = self.nodes.kill(node) if how == "killed" else self.nodes.part(node)
        replacement = self.nodes.add()
        log.info("Ray noticed after %.1f s; the node %s comes in its place", noticed, replacement)
        self.lost = Lost(node, how, step, of[node], round(noticed, 1), replacement)

    def _show(self, placement: Placement) -> None:
        runs = by_node(placement)
        of_head = ["head", "driver"]
        rows = [
            (node, ", ".join((of_head if node == self.nodes.head else []) + runs.get(node, [])) or "nothing")
            for node in self.nodes.addresses
        ]
        show_texts("Which node runs what", ("node", "runs"), rows)

    def result(self) -> dict[str, Any]:
        """For the job's result: what runs where at the end, and what became of the node that was lost."""
        runs = by_node(self.placement) if self.placement is not None and self._seen else {}
        lost = None if self.lost is None else asdict(self.lost)
        return {"nodes": {node: runs.get(node, []) for node in self.nodes.addresses}, "lost": lost}


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(f"rank {rank}" for rank in ranks) or "no rank"
