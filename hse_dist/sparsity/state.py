"""The SparsityServer's state as a checkpoint or a snapshot tells it, held against what a server can have said.

In: JSON. Out: the same, or what is wrong with it, before anything is computed from it.
"""

from __future__ import annotations

from typing import Any


def check_state(state: Any) -> dict[str, Any]:
    """`{"version": …, "journal": […]}` of `SparsityServer.state_dict()`.

    Raises:
        ValueError: it is not that.
    """
    if not isinstance(state, dict) or not isinstance(state.get("journal"), list):
        raise ValueError("the state of the SparsityServer has no journal")
    version, last = state.get("version"), 0
    for entry in state["journal"]:
        if not isinstance(entry, dict) or not (_count(entry.get("version")) and _count(entry.get("step", 0))):
            raise ValueError(f"the journal of the SparsityServer has the entry {str(entry)[:80]}")
        if any(not _count(entry[name]) for name in ("live", "goal") if name in entry):
            raise ValueError(f"the journal of the SparsityServer has no number of live entries in version {last}")
        last = entry["version"]
    if not _count(version) or version != last:
        raise ValueError(f"the version of the SparsityServer is {version!r}, that of its journal {last}")
    if state["journal"] and "goal" in state["journal"][0] and "live" not in state["journal"][0]:
        raise ValueError("the journal of the SparsityServer begins without live entries")
    return state


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62
