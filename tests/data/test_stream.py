from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hse_dist.config import StreamSettings
from hse_dist.data.order import EpochOrder
from hse_dist.data.prepared import HistoryBlock, Prepared
from hse_dist.data.stream import HistoryStream
from hse_dist.errors import DataError

SETTINGS = StreamSettings(window=2, lanes=4, prefetch=2)
BATCH = 20


def streams(prepared: Prepared, ranks: int, seed: int = 5, settings: StreamSettings = SETTINGS) -> list[HistoryStream]:
    return [
        HistoryStream(prepared, settings, batch_size=BATCH, seed=seed, rank=rank, ranks=ranks) for rank in range(ranks)
    ]


def read_epoch(stream: HistoryStream) -> Generator[HistoryBlock]:
    """The blocks that are left of the present epoch."""
    with closing(stream.read(stream.epoch_number + 1, lambda block, place: block)) as pairs:
        yield from (block for block, _ in pairs)


def users_of(block: HistoryBlock) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in np.split(block.rows, block.offsets[1:-1])] if len(block) else []


def rounds(group: list[HistoryStream], limit: int | None = None) -> list[list[list[tuple[int, ...]]]]:
    """Per round, per rank, the users; stops after `limit` rounds with the position kept."""
    iterators = [read_epoch(stream) for stream in group]
    found = []
    for _ in range(group[0].batches_left if limit is None else limit):
        found.append([users_of(next(iterator)) for iterator in iterators])
    if limit is None:
        assert all(next(iterator, None) is None for iterator in iterators)
    for iterator in iterators:
        iterator.close()
    return found


def flat(found: list[list[list[tuple[int, ...]]]]) -> list[list[tuple[int, ...]]]:
    """Blocks in their global order, without the empty ones that fill the last round."""
    return [block for ranks in found for block in ranks if block]


@pytest.fixture(scope="module")
def everyone(prepared: Prepared) -> Counter[tuple[int, ...]]:
    return Counter(user for block in prepared.scan("train") for user in users_of(block))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_every_user_once_an_epoch_in_an_order_that_does_not_depend_on_the_ranks(
    prepared: Prepared, everyone: Counter[tuple[int, ...]], ranks: int
) -> None:
    alone, together = streams(prepared, 1), streams(prepared, ranks)
    for epoch in range(2):
        expected = together[0].batches_in(epoch)
        assert {stream.batches_per_epoch for stream in together} == {expected}
        found = rounds(together)
        assert len(found) == expected
        assert flat(found) == flat(rounds(alone))
        assert Counter(user for block in flat(found) for user in block) == everyone
        assert all(len(block) <= BATCH for block in flat(found))
        assert [stream.epoch_number for stream in together] == [epoch + 1] * ranks


def test_epochs_and_seeds_differ_and_users_are_mixed(prepared: Prepared) -> None:
    (stream,) = streams(prepared, 1)
    one, two = flat(rounds([stream])), flat(rounds([stream]))
    (other,) = streams(prepared, 1, seed=6)
    assert one != two and flat(rounds([other])) != one
    in_files = [user for block in prepared.scan("train") for user in users_of(block)]
    neighbours = set(pairwise(in_files))
    shuffled = [user for block in one for user in block]
    assert sum(pair in neighbours for pair in pairwise(shuffled)) < 0.1 * len(in_files)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 1), (4, 2), (1, 4)])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_state_is_resumed_at_the_next_block_by_any_number_of_ranks(
    prepared: Prepared, before: int, after: int, steps: int
) -> None:
    expected = flat(rounds(streams(prepared, 1))) + flat(rounds(_at_epoch(prepared, 1)))
    first = streams(prepared, before)
    found = flat(rounds(first, steps))
    states = [json.loads(json.dumps(stream.state_dict())) for stream in first]
    assert all(state == states[0] for state in states) and states[0]["blocks"] == before * steps
    second = streams(prepared, after)
    for stream in second:
        stream.load_state_dict(states[0])
    found += flat(rounds(second)) + flat(rounds(second))
    assert found == expected


def _at_epoch(prepared: Prepared, epoch: int) -> list[HistoryStream]:
    group = streams(prepared, 1)
    group[0].load_state_dict({**group[0].state_dict(), "epoch": epoch, "blocks": 0})
    return group


def test_the_position_counts_what_was_handed_out_not_what_was_read_ahead(prepared: Prepared) -> None:
    (stream,) = streams(prepared, 1)
    iterator = read_epoch(stream)
    assert stream.blocks == 0
    one = users_of(next(iterator))
    assert stream.blocks == 1
    iterator.close()
    assert [one, *flat(rounds([stream]))] == flat(rounds(streams(prepared, 1)))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("pause", [0, 3, 11, 30])
def test_every_block_is_made_once_with_its_place_over_epochs_and_a_pause(
    prepared: Prepared, ranks: int, pause: int
) -> None:
    plain = streams(prepared, ranks)
    blocks = rounds(plain) + rounds(plain)
    for rank, stream in enumerate(streams(prepared, ranks)):
        expected = [(place, found[rank]) for place, found in enumerate(blocks)]
        items = stream.read(2, lambda block, place: (place, users_of(block)))
        found = [next(items) for _ in range(min(pause, len(expected)))]
        items.close()
        first = len(found)
        found += stream.read(2, lambda block, place, first=first: (first + place, users_of(block)))
        found, following = ([pair[side] for pair in found] for side in (0, 1))
        assert following[:-1] == expected[1:] and following[-1] is None
        assert found == expected and (stream.epoch_number, stream.blocks) == (2, 0)
        assert list(stream.read(2, lambda block, place: place)) == []


def test_a_thread_makes_the_items_and_goes_on_over_the_end_of_an_epoch(prepared: Prepared) -> None:
    (stream,) = streams(prepared, 1)
    blocks, reached, threads = stream.batches_per_epoch, threading.Event(), set()

    def make(block: HistoryBlock, place: int) -> int:
        threads.add(threading.get_ident())
        if place == blocks:
            reached.set()
        return place

    items = stream.read(2, make)
    assert [next(items) for _ in range(blocks)] == [(place, place + 1) for place in range(blocks)]
    # nobody has asked for it
    assert reached.wait(timeout=60) and (stream.epoch_number, stream.blocks) == (1, 0)
    items.close()
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_what_fails_in_the_making_reaches_the_consumer(prepared: Prepared) -> None:
    (stream,) = streams(prepared, 1)

    def make(block: HistoryBlock, place: int) -> float:
        return 1 / (2 - place)

    items = stream.read(1, make)
    assert next(items) == (0.5, 1.0)
    # a rank that went on alone would make the others wait for its next batch
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert stream.blocks == 1


def test_the_thread_ends_with_the_iterator(prepared: Prepared) -> None:
    before = threading.active_count()
    (stream,) = streams(prepared, 1)
    iterator = read_epoch(stream)
    next(iterator)
    assert threading.active_count() == before + 1
    iterator.close()
    assert threading.active_count() == before
    assert len(list(read_epoch(stream))) and threading.active_count() == before


def test_uneven_ends_are_filled_with_empty_blocks(prepared: Prepared) -> None:
    blocks = streams(prepared, 1)[0].batches_per_epoch
    ranks = next(n for n in range(2, 9) if blocks % n)
    last = rounds(streams(prepared, ranks))[-1]
    filled = blocks % ranks
    assert all(last[:filled]) and last[filled:] == [[]] * (ranks - filled)


def test_a_state_of_another_stream_is_refused(prepared: Prepared) -> None:
    (stream,) = streams(prepared, 1)
    state = stream.state_dict()
    for key, value in (
        ("seed", 6),
        ("batch_size", 21),
        ("window", 3),
        ("lanes", 5),
        ("row_groups", "x"),
        ("version", 0),
    ):
        with pytest.raises(DataError, match=f"does not fit this run: {key} is {value!r}, here"):
            stream.load_state_dict({**state, key: value})
    with pytest.raises(DataError, match="outside of an epoch"):
        stream.load_state_dict({**state, "blocks": 10_000})
    assert stream.state_dict() == state


def test_a_reader_error_reaches_the_consumer(prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.folder, tmp_path / "copy")
    damaged = Prepared(tmp_path / "copy")
    (group,) = streams(damaged, 1)
    (damaged.folder / damaged.manifest["files"]["train"][1]["path"]).unlink()
    before = threading.active_count()
    with pytest.raises(DataError, match="bucket=001"):
        list(read_epoch(group))
    assert threading.active_count() == before


@pytest.mark.parametrize(("window", "lanes", "batch"), [(1, 1, 7), (2, 3, 50), (3, 8, 1000), (100, 4, 13), (1, 5, 200)])
def test_blocks_cover_every_window_once(window: int, lanes: int, batch: int) -> None:
    users = np.random.default_rng(0).integers(1, 60, 31).tolist()
    settings = StreamSettings(window=window, lanes=lanes)
    order = EpochOrder(users, settings, batch, seed=1, epoch=2)
    seen: dict[int, list[int]] = {}
    for index in range(len(order)):
        pieces = order.block(index)
        size = sum(piece.last - piece.first for piece in pieces)
        assert 0 < size <= batch and len({piece.lane for piece in pieces}) == 1
        for piece in pieces:
            seen.setdefault(piece.window, []).extend(range(piece.first, piece.last))
    sizes = {index: sum(users[group] for group in groups) for index, groups in enumerate(order.windows)}
    assert {window: sorted(places) for window, places in seen.items()} == {w: list(range(n)) for w, n in sizes.items()}
    assert sorted(group for groups in order.windows for group in groups) == list(range(31))


def test_ranks_that_divide_the_lanes_read_nothing_twice() -> None:
    order = EpochOrder([10] * 64, StreamSettings(window=2, lanes=4), 20, seed=0, epoch=0)
    read = [{piece.window for b in range(rank, len(order), 2) for piece in order.block(b)} for rank in range(2)]
    assert not read[0] & read[1] and len(read[0] | read[1]) == 32
