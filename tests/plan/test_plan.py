"""Units, expectations, what fits, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hse_dist.cli.main import main
from hse_dist.cli.parser import parse
from hse_dist.plan.planner import ask_planner
from hse_dist.plan.shape import Shape, expected_candidates
from hse_dist.plan.sizes import fits, parts, smallest_workers, table_parts, total, total_of_host
from hse_dist.plan.units import as_bytes, count, rate, size
from hse_dist.plan.wire import seconds, wire_bytes

LARGE = Shape(items=10**9, dims=65_535, live=64, workers=64, memory=80 * 10**9, network=12.5e9, device="cuda")


@pytest.mark.parametrize(
    ("read", "text", "number"),
    [
        (count, "1e9", 10**9),
        (count, "65535", 65_535),
        (count, "1.5e3", 1500),
        (size, "80GB", 80 * 10**9),
        (size, "1.5 GiB", 3 * 2**29),
        (size, "8Mb", 10**6),
        (rate, "100Gb/s", 12.5e9),
        (rate, "2GB/s", 2e9),
    ],
)
def test_units(read, text, number):
    assert read(text) == number


@pytest.mark.parametrize(
    ("read", "text"), [(count, "0"), (count, "1.5"), (count, "-3"), (size, "80"), (size, "80GB/s"), (rate, "100Gb")]
)
def test_units_that_are_none(read, text):
    with pytest.raises(ValueError, match="is not a"):
        read(text)


def test_bytes_for_people():
    assert [as_bytes(n) for n in (12, 1.5e3, 80e9, 1.234e15)] == ["12 B", "1.5 kB", "80 GB", "1,234 TB"]


@pytest.mark.parametrize("zipf", [0.0, 0.7, 1.0])
def test_expected_candidates_are_those_of_a_draw(zipf):
    shape = replace(LARGE, items=20_000, workers=4, users=50, history=40, negatives=500, zipf=zipf)
    rng, weights = np.random.default_rng(0), np.arange(1, 20_001) ** -zipf
    drawn = [rng.choice(20_000, 2000, p=weights / weights.sum()) for _ in range(20)]
    found = [np.unique(np.concatenate([rows, rng.integers(0, 20_000, 500)])) for rows in drawn]
    expected, first = expected_candidates(shape)
    assert expected == pytest.approx(np.mean([len(rows) for rows in found]), rel=0.02)
    assert first == pytest.approx(np.mean([np.mean(rows < 5000) for rows in found]), abs=0.02)


def test_smallest_cluster_fits_and_one_less_does_not():
    smallest = smallest_workers(LARGE)
    assert fits(LARGE.on(smallest)) and not fits(LARGE.on(smallest - 1)) and smallest < LARGE.workers
    # 8 GB of offsets are on every worker
    assert smallest_workers(replace(LARGE, memory=8 * 10**9)) is None


def test_more_workers_hold_less_and_send_more():
    few, many = LARGE.on(8), LARGE.on(64)
    assert total(parts(few)) > total(parts(many))
    sent = [sum(figure.value for figure in wire_bytes(shape).values()) for shape in (LARGE.on(1), few, many)]
    assert sent[0] == 0 < sent[1] < sent[2]
    # rows are ordered by popularity: the first worker has more than its share to do
    assert many.busiest > 1 / 64 and seconds(many)["wire"].value > 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_planner_of_torchrec_agrees_about_shards(device):
    shape = replace(LARGE, device=device, items=10**8, workers=16)
    answer = ask_planner(shape)
    ours = sum(part.bytes for part in parts(shape) if part.name in ("values", "columns", "gains", "optimizer"))
    assert answer.refusal == "" and answer.milliseconds > 0
    # it adds buffers of a lookup to the shards
    assert ours == pytest.approx(answer.bytes_per_worker, rel=0.1)


@pytest.mark.parametrize("kernel", ["fused_uvm", "fused_uvm_caching"])
def test_shards_in_the_host_leave_the_gpu_its_memory(kernel):
    shape = replace(LARGE, workers=8, kernel=kernel, cache_load_factor=0.05)
    assert not fits(LARGE.on(8)) and fits(shape)
    assert smallest_workers(shape) < smallest_workers(LARGE)
    held = {part.name: part.bytes for part in parts(shape) if part.when == "host"}
    assert total_of_host(parts(shape)) > held["values"] + held["columns"] + held["gains"]
    # neither is without limit
    assert not fits(replace(shape, host_memory=10**11)) and not fits(replace(shape, memory=10**10))
    answer = ask_planner(shape)
    assert answer.refusal == "" and answer.bytes_per_worker < 0.2 * sum(held.values())
    assert ask_planner(replace(shape, host_memory=10**10)).refusal


def test_a_cache_is_as_large_as_it_was_on_a_gpu():
    """What an H200 held of 2 million rows of 32 entries, but for their offsets; torch's own count."""
    shape = replace(
        LARGE, items=2_000_000, dims=4096, live=32, workers=1, chunk_width=32, even=True, kernel="fused_uvm_caching"
    )
    for kernel, bytes_held in (("fused", 576_835_584), ("fused_uvm", 32_835_584), ("fused_uvm_caching", 185_002_496)):
        found = [part.bytes for part in table_parts(replace(shape, kernel=kernel)) if part.when == "always"]
        assert sum(found) == pytest.approx(bytes_held, rel=0.03)


def test_the_planner_refuses_what_is_too_large():
    assert ask_planner(replace(LARGE, workers=4)).refusal


def test_the_command(capfd):
    words = "--items 1e9 --dims 65535 --live 64 --workers 64 --device cuda --memory 80GB --network 100Gb/s"
    assert main(["plan", *words.split(), "--interactions-per-day", "1e10"]) == 0
    shown = capfd.readouterr()
    answer = json.loads(shown.out)
    assert answer["fits"] is True and 1 < answer["smallest_workers"] < 64
    assert answer["bytes_per_worker"] == total(parts(LARGE))
    assert answer["wire_bytes_per_step"] == pytest.approx(sum(answer["wire_bytes"].values()), abs=10)
    assert answer["hours_per_day_of_data"] > 0 and answer["keeps_up"] in (True, False)
    for text in ("values", "columns", "offsets", "gains", "optimizer", "exploration", "activations", "4 · K · w"):
        assert text in shown.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--items many", "'many' is not a positive whole number"),
        ("--memory 80", "'80' is not a size"),
        ("--network 100Gb", "'100Gb' is not a rate"),
        ("--dims 1e9", "is not from 4 to"),
        ("--gradient-slots 32", "more than --chunk-width"),
        ("--kernel fused_uvm", "plan --kernel is for --device cuda"),
        ("--cache-load-factor 1.5", "is not a share above 0 and up to 1"),
    ],
)
def test_words_that_do_not_fit(change, message, capsys):
    words = [
        "plan",
        "--items",
        "1e9",
        "--dims",
        "65535",
        "--live",
        "64",
        "--workers",
        "64",
        "--memory",
        "80GB",
        "--network",
        "100Gb/s",
    ]
    with pytest.raises(SystemExit) as caught:
        parse([*words, *change.split()])
    assert caught.value.code == 2 and message in capsys.readouterr().err
