"""Which faults a soak brings, and that they are faults that there are."""

from __future__ import annotations

from itertools import islice

from hse_dist.soak.schedule import KINDS, schedule
from hse_dist.testing.faults import INSIDE


def test_every_bag_has_every_kind_and_the_seed_decides_the_order():
    bag = sum(kind.often for kind in KINDS)
    one, again, other = ([kind.name for kind, _ in islice(schedule(seed), 2 * bag)] for seed in (3, 3, 4))
    assert one == again != other
    assert set(one[:bag]) == set(one[bag:]) == {kind.name for kind in KINDS}
    assert one[:bag] != one[bag:]


def test_faults_inside_of_workers_are_among_the_kinds():
    assert set(INSIDE) < {kind.name for kind in KINDS}
