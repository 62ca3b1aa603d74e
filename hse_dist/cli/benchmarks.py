"""The benchmarks that the command line knows: what each measures, and its options.

In: a kind and its options. Out: its `Report`. A kind NAME is the function `benchmark_NAME` of the module
`hse_dist.benchmark.NAME`, whose arguments are the options here, with the same defaults; it is imported when it runs. So
a new one is one entry of `BENCHMARKS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from hse_dist.benchmark.report import Report

FOLDER = "runs/benchmark"


RESUMING = ("quality",)
"""Kinds that take the folder itself, as they go on from what they kept in it."""


@dataclass(frozen=True)
class Option:
    """`--name VALUE`: one of `choices` where there are some; else as `kind` says.

    Attributes:
        kind: a whole number from `least`; a text; several of either, with commas between; or a flag without a value.
    """

    name: str
    default: int | str | bool | tuple[int, ...] | tuple[str, ...] | None
    meaning: str
    choices: tuple[str, ...] = ()
    kind: Literal["number", "text", "numbers", "texts", "flag"] = "number"
    least: int = 1


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
            Option("block", "1", "b, adjacent columns that are live together", ("1", "4", "8", "16")),
            Option("repeats", 7, "steps measured; the median counts"),
            Option("threads", None, "threads of arithmetic (default: all cores)"),
            Option("device", "cpu", "where to measure", ("cpu", "cuda")),
        ),
    ),
    "wire": (
        "bytes that ranks send each other in a step, packed rows beside dense ones, and the time of the codecs",
        (
            Option("candidates", 8192, "C, distinct candidates of a rank's batch"),
            Option("live", 32, "k, live entries a row"),
            Option("dims", 4096, "D, columns of the packed and of the wide dense table"),
            Option("users", 128, "B, users of a rank's batch"),
            Option("history", 60, "mean history of a user"),
            Option("rows", 200_000, "rows of the tables"),
            Option("chunk_width", 16, "w, slots a chunk; w / 4 of its gradients are sent"),
            Option("steps", 3, "steps measured"),
        ),
    ),
    "scale": (
        "weak scaling: the same work on each of 1, 2 and 4 ranks, pinned to a core each",
        (
            Option("candidates", 8192, "C, distinct candidates of a rank's batch"),
            Option("live", 32, "k, live entries a row"),
            Option("dims", 4096, "D, columns of the packed table"),
            Option("users", 512, "B, users of a rank's batch"),
            Option("history", 60, "mean history of a user"),
            Option("rows", 200_000, "rows of the tables, for each rank"),
            Option("chunk_width", 32, "w, slots a chunk of the packed table"),
            Option("rounds", 12, "turns of every number of ranks; the median of all steps counts"),
            Option("steps", 4, "steps of a turn"),
        ),
    ),
    "stream": (
        "how long a training step waits for its batch, and how fast histories are read, beside a plain scan",
        (
            Option("candidates", 8192, "C, distinct candidates of a batch"),
            Option("live", 32, "k, live entries a row"),
            Option("dims", 4096, "D, columns of the packed table"),
            Option("users", 512, "B, users of a batch"),
            Option("history", 80, "mean history of a user, before items that come twice are merged"),
            Option("items", 8192, "rows that histories are of"),
            Option("rows", 200_000, "rows of the table"),
            Option("chunk_width", 32, "w, slots a chunk"),
            Option("steps", 60, "of an epoch"),
            Option("repeats", 3, "epochs measured; the median counts"),
            Option("threads", None, "threads of arithmetic (default: all cores)"),
        ),
    ),
    "prepare": (
        "raw log to histories, beside a plain scan of the log: interactions a second, and a task's memory",
        (
            Option("interactions", 20_000_000, "of the made-up log"),
            Option("items", 1_000_000, "of the made-up log"),
            Option("history", 20, "mean history of a user"),
            Option("tasks", 2, "that work at a time"),
            Option("memory_mb", 1024, "MiB that a task may use"),
            Option("min_item_count", 1, "users of an item that stays"),
            Option("admission_mb", None, "MiB of a sketch that passes over rarer items (default: without one)"),
            Option("repeats", 3, "preparations measured; the median counts"),
        ),
    ),
    "start": (
        "histories to a local-inverse start, at growing catalogues: seconds by stage, and memory",
        (
            Option("items", 1_000_000, "of the largest catalogue"),
            Option("interactions", 100, "of an item, about"),
            Option("history", 20, "mean history of a user"),
            Option("entries", 64, "m, items of a pattern"),
            Option("live", 16, "k, live entries a row that are left"),
            Option("tasks", 2, "that work at a time"),
            Option("memory_mb", 1024, "MiB that a task may use"),
            Option("sizes", 3, "catalogues, each half as large as the next"),
        ),
    ),
    "rewire": (
        "what rewiring costs in ordinary steps, and the server's time for up to 1 024 ranks",
        (
            Option("candidates", 8192, "C, distinct candidates of a batch"),
            Option("live", 32, "k, live entries a row"),
            Option("dims", 4096, "D, columns of the packed table"),
            Option("users", 512, "B, users of a batch"),
            Option("history", 60, "mean history of a user"),
            Option("rows", 200_000, "rows of the table"),
            Option("chunk_width", 32, "w, slots a chunk"),
            Option("interval", 10, "steps between rewires"),
            Option("window", 2, "steps before a rewire that gather growth scores"),
            Option("collect_users", 64, "users of a batch that growth scores come from"),
            Option("repeats", 7, "intervals measured; the median counts"),
            Option("threads", None, "threads of arithmetic (default: all cores)"),
            Option("ranks", 1024, "most ranks of the simulated rewires"),
        ),
    ),
    "memory": (
        "a table that is far too large as dense values, trained and rewired: resident memory, stage by stage",
        (
            Option("rows", 20_000_000, "of the table"),
            Option("dims", 4096, "D, columns"),
            Option("live", 32, "k, live entries a row"),
            Option("chunk_width", 32, "w, slots a chunk: 8, 16 or 32"),
            Option("ranks", 2, "processes, with one thread each"),
            Option("users", 128, "B, users of a rank's batch"),
            Option("history", 60, "mean history of a user"),
            Option("candidates", 8192, "negatives of a rank's batch"),
            Option("limit_gb", 12, "GB of all ranks together at which they are ended"),
        ),
    ),
    "checkpoint": (
        "how long a checkpoint holds training up, written at once and by a thread; and what checking it costs",
        (
            Option("rows", 1_000_000, "of the table"),
            Option("live", 32, "k, live entries a row"),
            Option("dims", 4096, "D, columns"),
            Option("chunk_width", 32, "w, slots a chunk"),
            Option("repeats", 5, "checkpoints of each kind; the median counts"),
            Option("where", None, "folder on the disk to be measured (default: that of temporary files)", kind="text"),
        ),
    ),
    "retrieve": (
        "the best items of users from an export, many at once and one at a time, beside dense products and SciPy's",
        (
            Option("items", 1_000_000, "of the export"),
            Option("users", 1000, "asked for at once"),
            Option("top", 100, "items a user gets"),
            Option("live", 32, "k, live entries an item"),
            Option("dims", 4096, "D, columns"),
            Option("history", 60, "mean history of a user"),
            Option("repeats", 3, "answers measured; the median counts"),
            Option("threads", None, "threads of arithmetic (default: all cores)"),
            Option("queries", 400, "histories that are asked one at a time, in one thread"),
            Option("single_history", 50, "items of each of these"),
            Option("part", "all", "leave out the many users", ("all", "single")),
        ),
    ),
    "serve": (
        "answers over loopback by `hse-dist serve`: requests a second, p50 and p99, for growing numbers of clients",
        (
            Option("items", 100_000, "of the export"),
            Option("live", 32, "k, live entries an item"),
            Option("dims", 4096, "D, columns"),
            Option("history", 50, "mean history of a question"),
            Option("top", 20, "items of an answer"),
            Option("replicas", 1, "processes that answer; 0: one, without Ray", least=0),
            Option("threads", 1, "answers that a replica computes at a time"),
            Option("clients", (1, 4, 16), "that ask at once, round by round", kind="numbers"),
            Option("seconds", 10, "of a round"),
        ),
    ),
    "prequential": (
        "quality on the next day of a log with new items: continued daily, trained anew daily, never trained again",
        (
            Option("users", 3000, "of the made-up log"),
            Option("items", 1500, "of the made-up log"),
            Option("history", 30, "mean interactions a user"),
            Option("days", 8, "after the first"),
            Option("live", 16, "k, live entries a row"),
            Option("epochs", 5, "of a training from scratch"),
            Option("daily_epochs", 1, "of a day's continuation"),
            Option("start", "hse", "of a training from scratch", ("hse", "local_inverse", "random")),
            Option("continues_from", "best", "checkpoint of the day before that is continued", ("best", "newest")),
            Option("seed", 0, "of the log and of training", least=0),
        ),
    ),
    "quality": (
        "nDCG@100 against bytes an item, of our rows and of every baseline; goes on from what is there",
        (
            Option("data", ("ml-100k",), "names of configurations", kind="texts"),
            Option("methods", None, "ours, its variants and baselines (default: all)", kind="texts"),
            Option("bytes", (64, 128, 256, 512, 1024), "budgets, bytes an item", kind="numbers"),
            Option("seeds", None, "of split and run (default: 0, and 1 and 2 of small data)", kind="numbers", least=0),
            Option("hours", None, "after which no cell is begun, added to --minutes (default: no limit)"),
            Option("minutes", None, "after which no cell is begun (default: no limit)"),
            Option("cell_minutes", None, "after which a cell is ended, as a failure (default: no limit)"),
            Option("retry", False, "try again what failed", kind="flag"),
            Option("show", False, "measure nothing, show what is there", kind="flag"),
            Option("configs", "configs", "folder of the configurations, NAME.toml", kind="text"),
        ),
    ),
}


def measure(kind: str, options: dict[str, Any], folder: Path) -> Report:
    """Run one benchmark; `folder` is for those that keep their work.

    Raises:
        HseError: of the benchmark.
    """
    function = getattr(import_module(f"hse_dist.benchmark.{kind}"), f"benchmark_{kind}")
    more = {"folder": folder} if kind in RESUMING else {}
    report: Report = function(**options, **more)
    return report
