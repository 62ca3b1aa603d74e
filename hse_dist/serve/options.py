"""What a server is asked for, and what it refuses.

In: the command line's words, or the `args` of a Ray Serve configuration. Out: checked options. Everything has a limit:
a request is refused before it costs memory or time that others wait for.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from hse_dist.config.base import Settings
from hse_dist.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]


class Limits(Settings):
    """What one request, and all of them together, may take of a replica."""

    max_body_bytes: Positive = 1 << 20
    """Bytes of a request's body; more is answered with 413."""
    max_k: Positive = 1000
    """Items that may be asked for."""
    max_explained: Positive = 100
    """Items that may be asked for with `explain`: reasons are many times longer than answers."""
    max_reason_items: Positive = 20
    """Items of the history that a reason names, those that add most; more are left out."""
    max_history: Positive = 10_000
    """Ids of a history."""
    max_filter: Positive = 50_000
    """Ids of `allow`, and of `deny`."""
    max_features: Positive = 64
    """Features of the user that are named."""
    max_values: Positive = 1000
    """Values of one feature."""
    concurrency: Positive = 64
    """Requests for recommendations that a replica works on or lets wait; more are answered with 503."""
    seconds: Positive = 30
    """What a request may take, from the end of its headers to its answer; after that the answer is 408."""


class Options(Settings):
    """A server."""

    export: Annotated[str, Field(min_length=1)]
    """Folder of an export, or a folder of exports with a `latest.json`."""
    host: str = "127.0.0.1"
    """Address to listen on; only programs of this machine reach a loopback one."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """0: any free one."""
    replicas: Annotated[int, Field(ge=0)] = 1
    """Processes that answer, behind Ray Serve's proxy; 0: this process alone, without Ray."""
    threads: Positive = 1
    """Requests that a replica computes at a time, a core each."""
    look_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Between two looks for a newer export."""
    limits: Limits = Limits()
    """See `Limits`."""


def parse_options(raw: dict[str, Any]) -> Options:
    """Checked options.

    Raises:
        ConfigError: some are wrong; all of them in one message.
    """
    try:
        return Options(**raw)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"The server's options are wrong: {wrong}.") from None
