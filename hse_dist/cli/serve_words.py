"""The words of `serve`: where, with what, and how much.

In: the parser of jobs. Out: options, with the names and defaults of `hse_dist.serve.options`, where they are checked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hse_dist.serve.options import Limits, Options

if TYPE_CHECKING:
    Jobs = argparse._SubParsersAction[argparse.ArgumentParser]

WORDS = {
    "port": "to listen on; 0: any free one",
    "replicas": "processes that answer; 0: this one alone, without Ray",
    "threads": "answers that a replica computes at a time",
    "max_body_bytes": "of a request; more is answered with 413",
    "max_k": "items that may be asked for",
    "max_explained": "items that may be asked for with their reasons",
    "max_reason_items": "items of the history that a reason names; more are left out",
    "max_history": "ids of a history",
    "max_filter": "ids of `allow`, and of `deny`",
    "max_features": "features of the user that are named",
    "max_values": "values of one feature",
    "concurrency": "requests that a replica takes at once; more are answered with 503",
    "seconds": "that a request may take; then it is answered with 408",
}


def add_serve(jobs: Jobs, number: Callable[..., int]) -> None:
    """Add the job and its options."""
    whole = partial(number, least=0)
    text = "answer over HTTP from an export, on Ray Serve, until Ctrl-C or SIGTERM"
    job = jobs.add_parser("serve", help=text, description=text, allow_abbrev=False)
    text = "folder that the job export wrote, or a folder of such with a latest.json"
    job.add_argument("export", metavar="EXPORT", help=text)
    host = Options.model_fields["host"].default
    text = f"address to listen on (default: {host}, which other machines do not reach)"
    job.add_argument("--host", default=host, metavar="ADDRESS", help=text)
    for name, meaning in WORDS.items():
        default = (Limits if name in Limits.model_fields else Options).model_fields[name].default
        take = whole if name in ("port", "replicas") else number
        text = f"{meaning} (default: {default})"
        job.add_argument("--" + name.replace("_", "-"), type=take, default=default, metavar="N", help=text)
