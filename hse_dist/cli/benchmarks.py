"""The benchmarks that the command line knows: what each measures, and its options.

In: a kind and its options. Out: its `Report`. A kind NAME is the function `benchmark_NAME` of the module
`hse_dist.benchmark.NAME`, whose arguments are the options here, with the same defaults; it is imported when it runs. So
a new one is one entry of `BENCHMARKS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hse_dist.benchmark.report import Report

FOLDER = "runs/benchmark"


@dataclass(frozen=True)
class Option:
    """`--name N`: a positive whole number, or one of `choices`."""

    name: str
    default: int | str | None
    meaning: str
    choices: tuple[str, ...] = ()


BENCHMARKS: dict[str, tuple[str, tuple[Option, ...]]] = {
    "step": (
        "forward, backward and update of the packed table beside dense ones of equal dimensions and of equal bytes",
        (
            Option("candidates", 8192, "C, distinct candidates of a batch"),
            Option("live", 32, "k, live entries a row"),
            Option("dims", 4096, "D, columns of the packed and of the wide dense table"),
            Option("users", 512, "B, users of a batch"),
            Option("history", 60, "mean history of a user"),
            Option("rows", 200_000, "rows of the tables"),
            Option("chunk_width", 32, "w, slots a chunk of the packed table"),
            Option("repeats", 7, "steps measured; the median counts"),
            Option("threads", None, "threads of arithmetic (default: all cores)"),
            Option("device", "cpu", "where to measure", ("cpu", "cuda")),
        ),
    ),
}


def measure(kind: str, options: dict[str, Any]) -> Report:
    """Run one benchmark.

    Raises:
        HseError: of the benchmark.
    """
    function = getattr(import_module(f"hse_dist.benchmark.{kind}"), f"benchmark_{kind}")
    report: Report = function(**options)
    return report
