"""What a server's own process asks it: whether it answers, and what it has counted.

In: options. Out: bytes, numbers. A server on Ray is asked through the front door, as by everybody else; one in this
process needs no connection, which somebody else may have taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection

from hse_dist.serve.options import Options

SECONDS = 2.0


@dataclass(frozen=True)
class Running:
    """A server.

    Attributes:
        look: raises OSError or HTTPException where it does not answer now, ServeError where it never will again.
        drain: refuses new requests and waits for those under way; raises nothing.
        total: the sum of a counter; raises OSError, HTTPException or ValueError.
    """

    look: Callable[[], object]
    drain: Callable[[], None]
    total: Callable[[str], float]


def for_url(host: str) -> str:
    """An address that a client of this machine may use."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def get(options: Options, path: str) -> bytes:
    """Raises OSError or HTTPException."""
    host = for_url(options.host).strip("[]")
    connection = HTTPConnection(host, options.port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def samples(options: Options, name: str) -> list[float]:
    """The numbers of one name on the page for Prometheus."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(get(options, "/metrics").decode())
    return [sample.value for family in families for sample in family.samples if sample.name == name]


def total(options: Options, name: str) -> float:
    """Their sum."""
    return sum(samples(options, name))
