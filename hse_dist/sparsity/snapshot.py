"""What the SparsityServer's actor writes down, so that the next one can go on in its place.

In: the state after a decision that is final. Out: one small JSON file, whole or not there, written before any rank
hears of the decision. What lies between two such decisions is not in it: ranks keep their messages since the last one
and send them again, and equal messages get equal answers.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hse_dist.errors import HseError
from hse_dist.files import read_json, write_json
from hse_dist.sparsity.state import check_state

KINDS = {
    "name": str,
    "fingerprint": str,
    "attempt": str,
    "ranks": int,
    "steps": int,
    "sequence": int,
    "stop": bool,
}
"""Of what stands beside the server's state."""
MOST = 2**31
"""Of ranks, steps and messages."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """All that an actor needs to go on.

    Attributes:
        name: of the actor: what another one left behind is not its own.
        fingerprint: of the configuration.
        attempt: the worker group. ranks, steps: as it joined with.
        sequence: of the messages that were answered last; 0: none yet.
        server: version and journal.
        stop: whether the ranks were asked to stop.
    """

    name: str
    fingerprint: str
    attempt: str
    ranks: int
    steps: int
    sequence: int
    server: dict[str, Any]
    stop: bool


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Replace the snapshot at `path`.

    Raises:
        OSError: it cannot be written.
    """
    write_json(path, asdict(snapshot))


def read_snapshot(path: Path, name: str, fingerprint: str) -> Snapshot | None:
    """The snapshot that the actor `name` left at `path`; None where there is none of it, or none that can be used."""
    if not path.exists():
        return None
    try:
        found = Snapshot(**read_json(path, "snapshot of the SparsityServer"))
        if not check_state(found.server)["journal"]:
            raise ValueError("its journal is empty")
        for key, kind in KINDS.items():
            value = getattr(found, key)
            if type(value) is not kind or (isinstance(value, int) and not 0 <= value < MOST):
                raise ValueError(f"its {key} is {str(value)[:80]}")
    except (HseError, TypeError, ValueError) as error:
        log.warning("The SparsityServer's snapshot %s is of no use: %s", path, error)
        return None
    return found if (found.name, found.fingerprint) == (name, fingerprint) else None
