"""What a check says: ok, a warning or a failure, in one sentence, with what to do about it.

In: facts that others have gathered. Out: `Finding`s, a table of them for people, and one JSON-able object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "failed"]
COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        mend: what to do; empty where all is well.
    """

    check: str
    status: Status
    what: str
    mend: str = ""


def result(findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """The JSON-able object; `exit_code` is 1 where anything failed."""
    counts = {status: sum(one.status == status for one in findings) for status in COLOURS}
    return {
        "ok": not counts["failed"],
        "failed": counts["failed"],
        "warnings": counts["warning"],
        "findings": [asdict(one) for one in findings],
        "seconds": round(seconds, 2),
        "exit_code": int(counts["failed"] > 0),
    }


def show(findings: Sequence[Finding]) -> None:
    """A table on standard error; what to do stands under what was found."""
    from hse_dist.screen import show_texts

    rows = [
        (one.check, (one.status, COLOURS[one.status]), f"{one.what}\n{one.mend}" if one.mend else one.what)
        for one in findings
    ]
    show_texts("hse-dist doctor", ("check", "", "found, and what to do"), rows)
