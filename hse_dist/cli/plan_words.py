"""The words of the job `plan`: the fields of a `Shape`, as people write numbers.

In: the parser's jobs. Out: one more. Defaults are those of the settings of the same meaning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from hse_dist.config.tables import MAX_DIMS
from hse_dist.plan.units import count, rate, size


def _of(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same for argparse, which shows the words of its own kind of error."""

    def take(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return take


def _dims(text: str) -> int:
    found = count(text)
    if not 4 <= found <= MAX_DIMS:
        raise ValueError(f"{text!r} is not from 4 to {MAX_DIMS}")
    return found


def _least_zero(text: str) -> float:
    if not 0 <= (found := float(text)) < 100:
        raise ValueError(f"{text!r} is not a number from 0 up")
    return found


def _share(text: str) -> float:
    if not 0 < (found := float(text)) <= 1:
        raise ValueError(f"{text!r} is not a share above 0 and up to 1")
    return found


def add_plan(jobs: Any) -> None:
    """Add the job."""
    text = "what a run would take on machines that are not here: bytes, wire, time, checkpoints, whether it fits"
    job = jobs.add_parser("plan", help=text, description=text, allow_abbrev=False)
    needed: tuple[tuple[str, Callable[[str], Any], str], ...] = (
        ("items", count, "rows of the table, such as 1e9"),
        ("dims", _dims, "D, columns"),
        ("live", count, "k, mean live entries a row"),
        ("workers", count, "ranks"),
        ("memory", size, "of a worker, such as 80GB"),
        ("network", rate, "of a worker, such as 100Gb/s"),
    )
    for name, read, meaning in needed:
        job.add_argument(f"--{name}", type=_of(read), required=True, metavar=name.upper(), help=meaning)
    job.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the table lies (default: cpu)")
    text = "where a GPU's shards lie: in its memory (default), in the host's, or there with a cache on the GPU"
    job.add_argument("--kernel", choices=("fused", "fused_uvm", "fused_uvm_caching"), default="fused", help=text)
    job.add_argument("--interactions-per-day", type=_of(count), metavar="N", help="says how long a day's data take")
    job.add_argument("--chunk-width", type=int, choices=(8, 16, 32), default=16, help="w, slots a chunk (default: 16)")
    job.add_argument("--row-norm", choices=("free", "unit"), default="free", help="free rows have gains (default)")
    job.add_argument("--optimizer", choices=("rowwise_adagrad", "adagrad"), default="rowwise_adagrad", help="of values")
    job.add_argument("--even-rows", action="store_true", help="every row has k entries (default: a global budget)")
    job.add_argument("--values", choices=("float32", "float16"), default="float32", help="on the wire")
    job.add_argument("--gradients", choices=("float32", "bfloat16", "float16"), default="float32", help="on the wire")
    job.add_argument("--gradient-slots", type=_of(count), metavar="r", help="of a chunk's gradients (default: all)")
    further: tuple[tuple[str, Callable[[str], Any], Any, str], ...] = (
        ("cache-load-factor", _share, 0.2, "of fused_uvm_caching: share of the shards that the cache has room for"),
        ("host-memory", size, 2**40, "of a GPU's machine, a worker, such as 500GB"),
        ("slack", _least_zero, 0.0, "slots beyond those of the start, as a share"),
        ("users", count, 256, "B, of a worker's batch"),
        ("history", count, 60, "mean history of a user"),
        ("negatives", count, 2048, "uniform candidates of a worker's batch"),
        ("zipf", _least_zero, 1.0, "z, popularity is rank^-z; 0: all alike"),
        ("interval", count, 50, "steps between rewires"),
        ("window", count, 4, "steps before a rewire that gather growth scores"),
        ("explore", count, 16, "positions a candidate that are kept"),
        ("collect-users", count, 128, "users whose gradients are gathered"),
        ("threads", count, 1, "of a worker on a CPU"),
        ("disk", rate, 0.5e9, "what a worker writes of a checkpoint, such as 1GB/s; .5 GB/s was measured here"),
    )
    for name, read, default, meaning in further:
        shown = {"disk": "500MB/s", "host-memory": "1.1 TB"}.get(name, default)
        text = f"{meaning} (default: {shown})"
        job.add_argument(f"--{name}", type=_of(read), default=default, metavar="N", help=text)
