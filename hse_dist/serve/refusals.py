"""Which requests are refused by their head alone, before the application or a byte of their body is looked at.

In: the ASGI scope of a request, the limits. Out: a status and a sentence, or nothing. Ray's proxy takes a body in as it
comes: one that nobody reads would grow in memory without a bound.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from hse_dist.serve.options import Limits

RECOMMEND, RELOAD, HEALTHZ, METRICS, OPENAPI = "/recommend", "/reload", "/healthz", "/metrics", "/openapi.json"
PATHS = (RECOMMEND, RELOAD, HEALTHZ, METRICS, OPENAPI)
DIGITS = 18
"""Of a length that are looked at: Python refuses to read thousands."""


def refusal(scope: MutableMapping[str, Any], limits: Limits) -> tuple[int, str] | None:
    """What to answer at once, if anything."""
    headers = {name.lower(): value for name, value in scope["headers"]}
    length = headers.get(b"content-length", b"0")
    said = int(length[:DIGITS]) if length.isdigit() else 0
    if scope["path"] != RECOMMEND or scope["method"] != "POST":
        # nothing reads it there
        if said or b"transfer-encoding" in headers:
            return 413, "This path takes no body."
    elif said > limits.max_body_bytes:
        return 413, too_large(limits.max_body_bytes)
    if scope["path"] == RELOAD and _is_foreign(headers):
        return 403, "A page of another origin may not reload the export."
    return None


def too_large(most: int) -> str:
    """What is said of a larger body."""
    return f"The body is larger than {most} bytes, the most that is taken."


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Browsers say where a page is from; programs say nothing."""
    if b"origin" not in headers:
        return False
    try:
        origin = urlsplit(headers[b"origin"].decode("latin-1")).netloc
    except ValueError:
        return True
    return origin.lower() != headers.get(b"host", b"").decode("latin-1").lower() or not origin
