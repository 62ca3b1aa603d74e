"""Where jobs are submitted: the HTTP address of a cluster's dashboard.

In: what the command, the configuration and the environment say. Out: one address, or a message that says what is wrong
with it. Ray has addresses of several kinds, and only one of them takes jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from hse_dist.errors import ResourceError

EXAMPLE = "http://HEAD:8265"
SCHEMES = ("http", "https")


def job_server(option: str | None, setting: str | None, environment: Mapping[str, str]) -> str:
    """The address, without a slash at its end.

    Args:
        option: `--address`. setting: `cluster.address`, which counts where it is HTTP; else it is for drivers.
        environment: RAY_API_SERVER_ADDRESS counts before the setting; RAY_ADDRESS after it, where it is HTTP.

    Raises:
        ResourceError: there is none, or it is not one that takes jobs.
    """
    own = environment.get("RAY_API_SERVER_ADDRESS")
    for name, value in (("--address", option), ("RAY_API_SERVER_ADDRESS", own)):
        if value:
            return _checked(value, name)
    for name, value in (("cluster.address", setting), ("RAY_ADDRESS", environment.get("RAY_ADDRESS"))):
        if value and value.startswith(("http:", "https:")):
            return _checked(value, name)
    raise ResourceError(
        "Which cluster is the job for?",
        cause=f"Say --address {EXAMPLE}, or set RAY_API_SERVER_ADDRESS: the address of the cluster's dashboard.",
    )


def _checked(address: str, origin: str) -> str:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise ResourceError(
            "This address takes no jobs.",
            cause=f"Jobs go to the dashboard's HTTP address, such as {EXAMPLE}; ray://HOST:10001 and HOST:6379 are for "
            "drivers.",
            setting=origin,
            value=address,
        )
    return address.rstrip("/")
