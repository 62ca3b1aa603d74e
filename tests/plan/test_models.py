"""The byte and wire models against what ranks of real runs take and send, at four small shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hse_dist.benchmark.worlds import World
from hse_dist.config import WireSettings
from hse_dist.plan.shape import Shape
from hse_dist.plan.sizes import PROCESS, checkpoint_bytes, parts, table_parts, total
from hse_dist.plan.wire import wire_bytes
from hse_dist.ranks import KINDS
from tests.plan.measured import Rank, known

RANKS = 2
BASE = Shape(
    items=900_000,
    dims=4096,
    live=24,
    workers=RANKS,
    memory=10**9,
    network=1e9,
    chunk_width=8,
    even=True,
    gains=False,
    users=48,
    history=25,
    negatives=1500,
    zipf=0.0,
    interval=6,
    window=2,
    explore=16,
    collect_users=48,
)
STRONGEST = WireSettings(gradient_slots=2, gradients="bfloat16", values="float16")
SHAPES = {
    "several chunks a row": BASE,
    "gains, free slots, many columns": replace(
        BASE, items=1_200_000, dims=30_000, live=12, chunk_width=16, gains=True, users=32, negatives=4000
    ),
    "a state a slot": replace(BASE, items=600_000, live=16, chunk_width=16, dims=10_000, optimizer="adagrad", users=96),
    "residuals, halves": replace(BASE, items=1_000_000, live=8, wire=STRONGEST),
}
SMALL = replace(BASE, items=20_000)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each rank answered, by shape; a small one first, so that what libraries load late is there."""
    with World(Rank, RANKS) as world:
        world.call("measure", SMALL, str(tmp_path_factory.mktemp("small")))
        return {
            name: world.call("measure", shape, str(tmp_path_factory.mktemp("run"))) for name, shape in SHAPES.items()
        }


def mean(answers, key) -> float:
    return sum(answer[key] for answer in answers) / RANKS


@pytest.mark.distributed
@pytest.mark.parametrize("name", SHAPES)
def test_byte_model_of_tables_is_that_of_measured_memory(measured, name):
    shape = known(SHAPES[name], mean(measured[name], "distinct"))
    assert sum(part.bytes for part in table_parts(shape)) == pytest.approx(mean(measured[name], "table"), rel=0.02)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", SHAPES)
def test_byte_model_is_near_measured_memory(tmp_path, name):
    with World(Rank, RANKS) as world:
        world.call("measure", SMALL, str(tmp_path / "small"))
        found = [world.call("measure", SHAPES[name], str(tmp_path / str(turn))) for turn in range(3)]
    # what a rank has at most depends on what its allocator keeps of before, too: one shape took from 201 to 259 MB. The
    # least of several tries is nearest to what it needs, and that is not known to a tenth.
    highest = min(mean(answers, "highest") for answers in found)
    shape = known(SHAPES[name], mean(found[0], "distinct"))
    assert total(parts(shape)) - PROCESS == pytest.approx(highest, rel=0.15)


@pytest.mark.distributed
@pytest.mark.parametrize("name", SHAPES)
def test_wire_model_is_within_a_twentieth_of_the_meter(measured, name):
    answers = measured[name]
    shape = known(SHAPES[name], mean(answers, "distinct"))
    model = {kind: figure.value for kind, figure in wire_bytes(shape).items()}
    meter = {kind: sum(answer["wire"][kind] for answer in answers) for kind in KINDS}
    assert sum(model.values()) == pytest.approx(sum(meter.values()), rel=0.05)
    for kind in ("ids", "columns", "values", "gains", "gradients"):
        assert model[kind] == pytest.approx(meter[kind], rel=0.05)


@pytest.mark.distributed
@pytest.mark.parametrize("name", SHAPES)
def test_checkpoint_is_as_large_as_planned(measured, name):
    assert measured[name][0]["checkpoint"] == pytest.approx(checkpoint_bytes(SHAPES[name]), rel=0.02)


@pytest.mark.distributed
@pytest.mark.parametrize("name", SHAPES)
def test_batches_have_as_many_distinct_rows_as_expected(measured, name):
    for answer in measured[name]:
        assert SHAPES[name].candidates == pytest.approx(answer["distinct"], rel=0.01)
