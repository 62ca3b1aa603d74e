"""Which fault comes next, and what it is expected to do.

In: a seed. Out: kinds of faults without end, shuffled, the cheap ones more often: every bag holds each kind at least
once. The schedule of kinds follows from the seed; when each of them falls depends on how fast the machine is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class FaultKind:
    """A kind of fault.

    Attributes:
        ends: the exit codes with which it may end the driver, which is then started again; none: the driver goes on.
        often: how many of them are in a bag.
    """

    name: str
    ends: tuple[int, ...] = ()
    often: int = 1


KINDS = (
    FaultKind("kill_worker", often=2),
    FaultKind("kill_server", often=3),
    FaultKind("kill_driver", (-9,)),
    FaultKind("stop_worker"),
    FaultKind("stop_server"),
    FaultKind("stop_driver", often=2),
    FaultKind("terminate_driver", (143,)),
    FaultKind("terminate_worker", (143,)),
    FaultKind("raise"),
    FaultKind("nan_loss", (1,)),
    FaultKind("nan_row", (1,)),
    FaultKind("nan_gradient", (1,)),
    FaultKind("delay_message", often=3),
    FaultKind("drop_message", often=3),
    FaultKind("disk_full", (1, 2)),
    FaultKind("file_vanishes", (2,)),
    FaultKind("file_truncated", (2,)),
    FaultKind("file_changed", (2,)),
)


def schedule(seed: int) -> Iterator[tuple[FaultKind, random.Random]]:
    """Kinds without end, and what draws a fault's place."""
    draw = random.Random(seed)
    while True:
        bag = [kind for kind in KINDS for _ in range(kind.often)]
        draw.shuffle(bag)
        for kind in bag:
            yield kind, random.Random(draw.randrange(2**32))
