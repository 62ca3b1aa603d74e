"""Ranks, here threads, that talk to the real SparsityServer actor: its decisions, its waits and its refusals."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from hse_dist.config import BudgetSettings, ScheduleSettings, SparsitySettings
from hse_dist.errors import MissingRanksError, NumericError, ProtocolError
from hse_dist.sparsity.actor import ServerActor, start_server
from hse_dist.sparsity.client import Transport
from hse_dist.sparsity.growth import SeenGradients, merge
from hse_dist.sparsity.messages import Message, Open
from hse_dist.sparsity.remote import RayTransport
from hse_dist.sparsity.rewire import Candidates, rewire
from hse_dist.sparsity.server import SparsityServer
from hse_dist.sparsity.snapshot import Snapshot, read_snapshot, write_snapshot
from hse_dist.tables.sharded import OwnedRows
from hse_dist.testing.faults import never_answered
from hse_dist.testing.tables import Content, join

pytestmark = pytest.mark.ray

SETTINGS = SparsitySettings(budget=BudgetSettings(floor=2, ceiling=24), schedule=ScheduleSettings(drop_fraction=0.5))
ROWS, SPLIT, STEPS, LIMIT = 12, 5, 10, 20.0
CONTENT = Content.random(2, ROWS, 60, 8, longest=20, long_rows={})
START: dict[str, Any] = {"version": 0, "journal": [{"version": 0, "start": "random"}]}


class Direct:
    """A server in this process, for one rank."""

    def __init__(self, server: SparsityServer) -> None:
        self.server = server

    def ask(self, message: Message) -> Any:
        return self.server.decide([message])[0]

    def state_dict(self) -> dict[str, Any]:
        return self.server.state_dict()


class Twice(RayTransport):
    """Sends every message twice, as a retry after a lost reply does."""

    def ask(self, message: Message) -> Any:
        first = super().ask(message)
        self.sequence -= 1
        again = super().ask(message)
        assert repr(first) == repr(again)
        return again


@pytest.fixture
def actor(shared_ray: None) -> Iterator[Any]:
    handle = start_server(SETTINGS, "settings", f"server-{np.random.default_rng().integers(2**40)}")
    yield handle
    ray.kill(handle)


def connect(actor: Any, kind: type[RayTransport] = RayTransport, attempt: str = "first", **state: Any) -> list[Any]:
    """Two ranks' transports of a worker group that has joined."""
    transports = [kind(actor, attempt, rank, LIMIT) for rank in range(2)]
    for transport in transports:
        transport.join(2, STEPS, "settings", {**START, **state})
    return transports


def work(transport: Transport, first: int, last: int, versions: int, change: Callable[[OwnedRows], None]) -> OwnedRows:
    """Rewire the rows first … last − 1 `versions` times."""
    owned = CONTENT.owned(first, last)
    change(owned)
    for version in range(versions):
        rng = np.random.default_rng(version)
        triples = SeenGradients(
            rng.integers(0, ROWS, 200), rng.integers(0, 60, 200), rng.normal(size=200).astype(np.float32)
        )
        rows, columns, scores = merge(triples, np.arange(ROWS))
        mine = (rows >= first) & (rows < last)
        seen = Candidates(rows[mine], columns[mine], scores[mine])
        closed = rewire(
            owned, CONTENT.gains[first:last], seen, transport, SETTINGS, version=version, step=version + 1, seed=0
        )
        assert closed.version == version + 1
        owned.values[owned.live & (owned.values == 0)] = 0.5
    return owned


def on_two_ranks(
    transports: list[Any], versions: int, change: Callable[[OwnedRows], None] = lambda owned: None
) -> list[Any]:
    """What `work` returned or raised on both ranks."""
    with ThreadPoolExecutor(2) as pool:
        bounds = [(0, SPLIT), (SPLIT, ROWS)]
        futures = [
            pool.submit(work, one, *ends, versions, change) for one, ends in zip(transports, bounds, strict=True)
        ]
        return [future.exception() or future.result() for future in futures]


@pytest.mark.parametrize("kind", [RayTransport, Twice])
def test_decisions_equal_those_in_one_process_even_if_messages_come_twice(actor, kind):
    server = SparsityServer(SETTINGS, STEPS, 1)
    server.load_state_dict(START)
    expected = work(Direct(server), 0, ROWS, 3, lambda owned: None)
    transports = connect(actor, kind)
    got = join(on_two_ranks(transports, 3))
    assert np.array_equal(got.columns, expected.columns) and got.values.tobytes() == expected.values.tobytes()
    assert not np.array_equal(expected.columns, CONTENT.owned(0, ROWS).columns)
    assert transports[0].state_dict() == server.state_dict()
    assert len(server.journal) == 4 and server.version == 3


def test_a_wait_ends_at_its_limit_and_names_the_missing_rank(actor):
    transports = connect(actor)
    transports[1].limit = 0.3
    with pytest.raises(MissingRanksError, match=r"waited 0 s for rank\(s\) 0\..*cluster.timeout_seconds"):
        transports[1].ask(Open(1, 1, 0, 10, 5))


def test_an_error_of_one_rank_reaches_both(actor):
    def spoil(owned: OwnedRows) -> None:
        if owned.first:
            owned.values[0] = np.inf

    told = on_two_ranks(connect(actor), 1, spoil)
    assert [str(error).split(":")[0] for error in told] == [f"Table item, row {SPLIT}"] * 2
    assert all(isinstance(error, NumericError) for error in told)


def test_another_configuration_is_refused(actor):
    with pytest.raises(ProtocolError, match="another configuration"):
        RayTransport(actor, "first", 0, LIMIT).join(2, STEPS, "other settings", START)


def test_a_new_worker_group_takes_over_with_its_state_and_the_old_one_is_refused(actor):
    old = connect(actor)
    on_two_ranks(old, 2)
    assert old[0].state_dict()["version"] == 2
    new = connect(actor, attempt="second")  # from a checkpoint before both rewires
    with pytest.raises(ProtocolError, match="Rank 1 belongs to the worker group first, not to second"):
        old[1].ask(Open(1, 1, 0, 10, 5))
    old[0].sequence = 0
    assert all(isinstance(rows, OwnedRows) for rows in on_two_ranks(new, 1))
    state = new[1].state_dict()
    assert state["version"] == 1 and [entry["version"] for entry in state["journal"]] == [0, 1]


def test_a_server_that_died_refuses_all_until_a_worker_group_joins_with_its_state(actor):
    old = connect(actor)
    on_two_ranks(old, 2)
    state = old[0].state_dict()
    ray.kill(actor, no_restart=False)
    told = ""
    end = time.monotonic() + LIMIT
    while "none has joined" not in told:  # until Ray has started it again, and it knows nobody
        assert time.monotonic() < end, told
        try:
            assert old[0].state_dict() == state, "the state of a new server got out"
        except ProtocolError as error:
            told = str(error)
            assert "SparsityServer died" in told
    with pytest.raises(ProtocolError, match="none has joined"):
        old[1].ask(Open(3, 1, 0, 10, 5))
    new = connect(actor, attempt="second", **state)
    assert new[1].state_dict() == state
    with pytest.raises(ProtocolError, match="belongs to the worker group first, not to second"):
        old[0].state_dict()
    with pytest.raises(ProtocolError, match=r"versions \[1\] came, version 3 is next"):
        raise on_two_ranks(new, 1)[0]


@pytest.mark.slow
def test_a_join_waits_for_a_server_that_starts_again(actor):
    old = connect(actor)
    ray.kill(actor, no_restart=False)
    with pytest.raises(ProtocolError, match=r"died|none has joined"):
        while True:  # until the kill has arrived
            old[0].state_dict()
    assert connect(actor, attempt="second", version=7)[0].state_dict()["version"] == 7


def test_a_server_that_is_gone_for_good_is_named(actor):
    transport = connect(actor)[0]
    ray.kill(actor)
    for call in (transport.state_dict, lambda: transport.join(2, STEPS, "settings", START)):
        with pytest.raises(ProtocolError, match=r"The SparsityServer died\."):
            while True:  # until the kill has arrived
                call()


def test_a_rank_of_another_version_is_refused_on_both(actor):
    transports = connect(actor)
    with ThreadPoolExecutor(2) as pool:
        messages = [Open(1, 1, 0, 10, 5), Open(2, 1, SPLIT, 10, 5)]
        told = [pool.submit(one.ask, message) for one, message in zip(transports, messages, strict=True)]
        assert all("versions [1, 2] came, version 1 is next" in str(future.exception()) for future in told)


@pytest.fixture
def surviving(shared_ray: None, tmp_path: Path) -> Iterator[Any]:
    """An actor with a snapshot."""
    name = f"server-{np.random.default_rng().integers(2**40)}"
    handle = start_server(SETTINGS, "settings", name, tmp_path / "server.json", warn_seconds=0.5)
    yield handle
    ray.kill(handle)


def pid_of(actor: Any) -> int:
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


class Killing(RayTransport):
    """Ends the actor's process before its message of some sequences."""

    kills: tuple[int, ...] = ()
    stops = False
    """Whether SIGTERM came before that."""

    def _send(self, sequence: int) -> Any:
        if sequence in self.kills:
            self.kills = tuple(kill for kill in self.kills if kill != sequence)
            if self.stops:
                ray.get(self.actor.ask_to_stop.remote())
            os.kill(pid_of(self.actor), signal.SIGKILL)
        return super()._send(sequence)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [False, True])
def test_a_server_that_is_killed_within_rewires_goes_on_and_decides_alike(surviving, stops):
    server = SparsityServer(SETTINGS, STEPS, 1)
    server.load_state_dict(START)
    expected = work(Direct(server), 0, ROWS, 3, lambda owned: None)
    transports = connect(surviving, Killing)
    transports[0].stops = transports[1].stops = stops
    transports[0].kills, transports[1].kills = (1, 15), (6,)
    got = join(on_two_ranks(transports, 3))
    assert transports[0].kills == transports[1].kills == ()
    assert np.array_equal(got.columns, expected.columns) and got.values.tobytes() == expected.values.tobytes()
    assert transports[0].state_dict() == server.state_dict()


def test_a_message_that_was_lost_is_sent_again(surviving, monkeypatch):
    transports = connect(surviving)
    send, lost = RayTransport._send, [3, 7]

    def losing(self: RayTransport, sequence: int) -> Any:
        if self.rank and sequence in lost:
            lost.remove(sequence)
            return never_answered()
        return send(self, sequence)

    monkeypatch.setattr(RayTransport, "_send", losing)
    transports[1].again = 0.5
    assert all(isinstance(rows, OwnedRows) for rows in on_two_ranks(transports, 1))
    assert lost == [] and transports[0].state_dict()["version"] == 1


def test_a_snapshot_of_another_actor_or_a_torn_one_is_not_taken_up(tmp_path, caplog):
    path = tmp_path / "server.json"
    state = {**START, "journal": list(START["journal"])}
    write_snapshot(path, Snapshot("a", "settings", "first", 2, STEPS, 4, state, False))
    found = read_snapshot(path, "a", "settings")
    assert found is not None and found.sequence == 4 and found.server == state
    assert read_snapshot(path, "b", "settings") is None and read_snapshot(path, "a", "other") is None
    path.write_text(path.read_text()[:-20])
    assert read_snapshot(path, "a", "settings") is None and "is of no use" in caplog.text
    assert read_snapshot(tmp_path / "none.json", "a", "settings") is None


def test_who_is_slow_or_silent_is_named_in_the_log_before_the_limit(tmp_path, caplog):
    async def conversation() -> None:
        actor = ServerActor(SETTINGS, "settings", "a", tmp_path / "server.json", warn_seconds=0.8)
        await actor.join("first", 3, STEPS, "settings", START)
        assert [await actor.beat("first", rank, 7) for rank in range(3)] == [False] * 3
        asked = asyncio.create_task(actor.ask("first", 1, 1, Open(1, 1, 0, 10, 5), 1.6))
        while not asked.done():  # rank 0 is slow, and not silent
            await actor.beat("first", 0, 8)
            await asyncio.sleep(0.1)
        with pytest.raises(MissingRanksError, match=r"rank\(s\) 0, 2\."):
            await asked
        await actor.leave("first", 2)
        assert sorted(actor._beats) == [0, 1]
        await actor.ask_to_stop()
        assert await actor.beat("first", 0, 8)
        actor._watching.cancel()

    asyncio.run(conversation())
    assert caplog.text.count("Rank 1 has been silent") == caplog.text.count("Rank 2 has been silent") == 1
    assert "Rank 0 has been silent" not in caplog.text
    assert "has waited 1 s for rank(s) 0, 2" in caplog.text
    assert ServerActor(SETTINGS, "settings", "a", tmp_path / "server.json").stop, "a new actor forgot to stop"


def test_more_ranks_may_wait_than_the_actor_runs_at_a_time_by_default(actor):
    ranks = 1001  # an asyncio actor of Ray's takes a thousand
    ray.get(actor.join.remote("first", ranks, STEPS, "settings", START))
    messages = [Open(1, 5, rank, 10, 8) for rank in range(ranks)]
    replies = ray.get([actor.ask.remote("first", rank, 1, message, 60.0) for rank, message in enumerate(messages)])
    assert {reply.version for reply in replies} == {1} and len(replies) == ranks
