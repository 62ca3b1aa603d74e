"""The words of `submit`: how a job is sent, and after `--` the job's own options.

In: the parser of the job, and the words of the command line. Out: options, among them those of the job that is
submitted, which the job's own parser has accepted before anything is sent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

SUBMITTED = ("train", "prepare", "evaluate", "export", "recommend")


def add_submit(job: argparse.ArgumentParser, number: Callable[[str], int]) -> None:
    """Add its options."""
    text = "what runs there (default: train); its own options come last, after --"
    job.add_argument("--job", dest="submitted", choices=SUBMITTED, default="train", help=text)
    text = "dashboard of the cluster, http://HEAD:8265 (default: RAY_API_SERVER_ADDRESS; else cluster.address or "
    job.add_argument("--address", metavar="URL", help=text + "RAY_ADDRESS, where it is HTTP)")
    text = "send the code of this folder along (default: the configuration alone, and the cluster's own hse_dist runs)"
    job.add_argument("--working-dir", type=Path, metavar="FOLDER", help=text)
    text = "let the cluster install this checkout's packages first; without --working-dir its code goes along, too"
    job.add_argument("--install", action="store_true", help=text)
    text = "with --install: package index with wheels of torch for the CPU alone, a tenth of the download"
    job.add_argument("--torch-index", metavar="URL", help=text)
    job.add_argument("--no-wait", action="store_true", help="print the submission id, and leave the job to the cluster")
    text = "how long to wait for its end (default: 10080, a week); the job goes on after that"
    job.add_argument("--minutes", type=number, default=10080, metavar="M", help=text)


def split_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words of `submit`, and those after `--`; other jobs keep all of theirs."""
    if arguments[:1] != ["submit"] or "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def check_submit(
    words: argparse.Namespace,
    options: Sequence[str],
    parse: Callable[[Sequence[str]], argparse.Namespace],
    error: Callable[[str], object],
) -> None:
    """Let the submitted job's own parser look at its options, and keep them as `words.options`."""
    if words.torch_index and not words.install:
        error("submit --torch-index needs --install")
    if words.torch_index and "://" not in words.torch_index:
        error("submit --torch-index is a URL")
    overrides = [] if words.submitted == "recommend" else words.overrides
    parse([words.submitted, words.config, *overrides, *options])
    words.options = list(options)
