"""The words that the command line knows.

In: the words after the program's name. Out: a namespace with `job` and that job's options. A word that does not fit
ends the program with argparse's own message and exit code 2.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hse_dist.cli.benchmarks import BENCHMARKS, FOLDER, Option
from hse_dist.cli.plan_words import add_plan
from hse_dist.cli.serve_words import add_serve
from hse_dist.cli.submit_words import add_submit, check_submit, split_options

if TYPE_CHECKING:
    Jobs = argparse._SubParsersAction[argparse.ArgumentParser]

BASELINES = ("popularity", "item-knn", "item-knn-full", "ease", "ease-pruned", "hse", "dense", "gradual-topk", "als")
"""The names of hse_dist.baselines.registry, which would take seconds to import."""

OVERRIDE = re.compile(r"[a-z_]+(\.[\w-]+)+=")
"""How an override begins; a folder of such a name is written with ./ before it."""

EPILOG = """
Every job prints one JSON object as its last line on standard output and logs to standard error.
Exit codes: 0 success, 2 a mistake you can mend, 1 a failure (HSE_DEBUG=1 shows the traceback), 130 interrupted,
143 stopped by SIGTERM (train: with a checkpoint). A server (serve) ends with 0 on Ctrl-C and SIGTERM.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of one job; overrides may stand before, between or after other options."""
    parser = _parser()
    arguments, options = split_options(list(arguments))
    words, rest = parser.parse_known_args(arguments)
    # argparse ends the list of overrides at the first option, and hands on those after it
    overrides = getattr(words, "overrides", None)
    strange = [word for word in rest if overrides is None or word.startswith("-")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if overrides is not None:
        words.overrides = [*overrides, *_taken(words), *rest]
        if OVERRIDE.match(getattr(words, "config", None) or ""):  # `--export CONFIG` takes it for its folder
            parser.error(f"CONFIG comes first, before settings and options; {words.config} stands in its place")
    if words.job == "evaluate" and words.bytes and not words.baseline:
        parser.error("evaluate --bytes needs --baseline")
    if words.job == "plan" and words.gradient_slots and words.gradient_slots > words.chunk_width:
        parser.error("plan --gradient-slots is more than --chunk-width")
    if words.job == "plan" and words.device == "cpu" and words.kernel != "fused":
        parser.error("plan --kernel is for --device cuda")
    if words.job == "plan" and words.live > words.dims:
        parser.error("plan --live is more than --dims")
    if words.job == "plan" and words.window > words.interval:
        parser.error("plan --window is more than --interval")
    if words.job == "export" and words.to and not words.since:
        parser.error("export --to needs --since (a whole export goes to export.folder)")
    if words.job == "recommend" and words.histories and not words.output:
        parser.error("recommend --histories needs --output")
    if words.job == "recommend" and words.histories and words.feature:
        parser.error("recommend --feature is for --items; a file of histories has columns of features")
    if words.job == "submit":
        check_submit(words, options, parse, parser.error)
    return words


def _taken(words: argparse.Namespace) -> list[str]:
    """The override behind `evaluate --export`, which argparse takes for its folder; none where it is one."""
    if words.job != "evaluate" or not OVERRIDE.match(words.export or ""):
        return []
    taken = str(words.export)
    words.export = ""
    return [taken]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hse-dist",
        description="High-dimensional sparse embeddings for collaborative filtering: one job a command.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True)
    _add_prepare(jobs)
    train = _add(jobs, "train", "make the start, train it, keep the best checkpoint by validation")
    train.add_argument("--follow", action="store_true", help="watch the log; a round of training for all that comes")
    _add_simulate(jobs)
    add_submit(_add(jobs, "submit", "run a job on a Ray cluster that is there, and end as it ends"), _number)
    _add_evaluate(jobs)
    _add_export(jobs)
    _add_repack(jobs)
    _add_compare(jobs)
    _add_recommend(jobs)
    add_serve(jobs, _number)
    _add_benchmark(jobs)
    _add_demo(jobs)
    _add_doctor(jobs)
    add_plan(jobs)
    _add_inspect(jobs)
    _add_report(jobs)
    _add_soak(jobs)
    return parser


def _add(jobs: Jobs, name: str, text: str) -> argparse.ArgumentParser:
    """A job that takes a configuration."""
    job = jobs.add_parser(name, help=text, description=text, allow_abbrev=False)
    job.add_argument("config", metavar="CONFIG", help="TOML file")
    _add_overrides(job)
    return job


def _add_overrides(job: argparse.ArgumentParser) -> None:
    job.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="settings that replace those of CONFIG"
    )


def _add_prepare(jobs: Jobs) -> None:
    job = _add(jobs, "prepare", "make the histories and the vocabulary from a raw log")
    text = "a prepared folder: read only files of the log that are not in it, and let its items keep their rows"
    job.add_argument("--extend", metavar="FOLDER", help=text)


def _add_simulate(jobs: Jobs) -> None:
    job = _add(jobs, "simulate", "train on a Ray cluster of several nodes, all of them on this machine")
    job.add_argument("--nodes", type=_number, default=3, metavar="N", help="nodes, the head among them (default: 3)")
    text = "places for workers on a node (default: 1)"
    job.add_argument("--workers-per-node", type=_number, default=1, metavar="N", help=text)
    losses = job.add_mutually_exclusive_group()
    text = "let a node die, with all that runs on it, once training has come to this step"
    losses.add_argument("--kill-node", type=_number, metavar="AT_STEP", help=text)
    text = "cut a node off at this step, until the run goes on without it; then it comes back"
    losses.add_argument("--part-node", type=_number, metavar="AT_STEP", help=text)
    job.add_argument("--minutes", type=_number, default=30, metavar="M", help="limit of the whole (default: 30)")


def _add_evaluate(jobs: Jobs) -> None:
    job = _add(jobs, "evaluate", "rank the whole catalogue for held-out users")
    job.add_argument("--split", choices=("test", "valid"), default="test", help="held-out users (default: test)")
    others = job.add_mutually_exclusive_group()
    others.add_argument("--baseline", choices=BASELINES, help="another model of the same histories, not the run")
    text = "what an export answers, as it was written, and the bytes that it takes an item (default: the run's export)"
    others.add_argument("--export", nargs="?", const="", metavar="FOLDER", help=text)
    job.add_argument("--bytes", type=_number, metavar="N", help="what a baseline may take an item, where sized")


def _add_export(jobs: Jobs) -> None:
    job = _add(jobs, "export", "write the item matrix of the best checkpoint, or what changed since an export")
    text = "write a delta: the rows that are others than in this export, and new ones"
    job.add_argument("--since", metavar="EXPORT", help=text)
    job.add_argument("--to", metavar="FOLDER", help="where the delta goes (default: delta in the run folder)")


def _add_repack(jobs: Jobs) -> None:
    text = "the best checkpoint of a run with fewer live entries, cut globally by magnitude, as a run of its own"
    job = jobs.add_parser("repack", help=text, description=text, allow_abbrev=False)
    job.add_argument("run", metavar="RUN", help="run folder")
    job.add_argument("--live", type=_number, required=True, metavar="K", help="mean live entries a row that stay")
    job.add_argument("--to", metavar="FOLDER", help="run folder that is written (default: RUN-liveK)")


def _add_compare(jobs: Jobs) -> None:
    text = "paired bootstrap of a mean difference, over the users of one seed of the split or of several"
    job = jobs.add_parser("compare", help=text, description=text, allow_abbrev=False)
    for name in ("ours", "theirs"):
        job.add_argument(
            f"--{name}",
            nargs="+",
            required=True,
            metavar="FILE",
            help="SPLIT-users.parquet, a file a seed, as the job evaluate wrote it into RUN/evaluation",
        )
    job.add_argument("--metric", choices=("ndcg@100", "recall@20", "recall@50"), default="ndcg@100", help="of a user")


def _add_recommend(jobs: Jobs) -> None:
    text = "answer from an export alone: one history on the command line, or a Parquet file of histories"
    job = jobs.add_parser("recommend", help=text, description=text, allow_abbrev=False)
    job.add_argument("export", metavar="EXPORT", help="folder that the job export wrote")
    histories = job.add_mutually_exclusive_group(required=True)
    histories.add_argument("--items", metavar="ID,ID,…", help="the item ids of one history")
    histories.add_argument("--histories", metavar="FILE.parquet", help="a user a row, with the list of its item ids")
    text = "what else is known of the user, e.g. --feature country=de; as often as wanted, also with --items ''"
    job.add_argument("--feature", metavar="NAME=VALUE,…", action="append", default=[], type=_feature, help=text)
    job.add_argument("--output", metavar="FILE.parquet", help="where the answers to --histories go")
    job.add_argument("-k", type=_number, default=10, help="recommendations a history (default: 10)")


def _feature(text: str) -> tuple[str, list[str]]:
    """A feature's name and values."""
    name, equals, values = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has not the form NAME=VALUE")
    return name, [value.strip() for value in values.split(",") if value.strip()]


def _add_benchmark(jobs: Jobs) -> None:
    text = "measure on this machine; claims of speed in the README come from here"
    job = jobs.add_parser("benchmark", help=text, description=text, allow_abbrev=False)
    kinds = job.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, (text, options) in BENCHMARKS.items():
        words = kinds.add_parser(kind, help=text, description=text, allow_abbrev=False)
        for option in options:
            _add_option(words, option)
        text = f"where KIND.json and the picture KIND.png go (default: {FOLDER})"
        words.add_argument("--folder", default=FOLDER, metavar="FOLDER", help=text)


def _add_option(words: argparse.ArgumentParser, option: Option) -> None:
    name, default = "--" + option.name.replace("_", "-"), option.default
    if option.kind == "flag":
        words.add_argument(name, action="store_true", help=option.meaning)
        return
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    text = option.meaning if default is None else f"{option.meaning} (default: {shown})"
    if option.choices:
        words.add_argument(name, choices=option.choices, default=default, help=text)
        return
    number = partial(_number, least=option.least)
    kinds: dict[str, tuple[Callable[[str], Any], str]] = {
        "number": (number, "N"),
        "text": (str, "TEXT"),
        "numbers": (partial(_several, number), "N,N,…"),
        "texts": (partial(_several, str), "NAME,NAME,…"),
    }
    take, metavar = kinds[option.kind]
    words.add_argument(name, type=take, default=default, metavar=metavar, help=text)


def _add_demo(jobs: Jobs) -> None:
    text = "the whole path on one data set, ending with a table: our rows, a dense table of the same bytes, full EASE"
    job = _add(jobs, "demo", text)
    job.add_argument("--folder", default="runs/demo", help="where everything goes (default: runs/demo)")


def _add_doctor(jobs: Jobs) -> None:
    text = "what of this installation, machine and cluster works; exit code 1 if something does not"
    job = jobs.add_parser("doctor", help=text, description=text, allow_abbrev=False)
    job.add_argument(
        "config", metavar="CONFIG", nargs="?", help="TOML file whose folders, device and cluster are meant"
    )
    _add_overrides(job)
    job.add_argument("--address", metavar="HOST:PORT", help="Ray cluster to look at (default: one of its own)")
    job.add_argument("--folder", metavar="FOLDER", action="append", default=[], help="further folder to write to")


def _add_inspect(jobs: Jobs) -> None:
    text = "the items nearest to an item, the columns it uses and who shares them, live entries of rows"
    job = jobs.add_parser("inspect", help=text, description=text, allow_abbrev=False)
    job.add_argument("place", metavar="RUN|EXPORT", help="folder of a run or of an export")
    job.add_argument("--item", metavar="ID", help="id of an item (default: the most popular one)")
    job.add_argument("-k", type=_number, default=10, help="neighbours and columns shown (default: 10)")


def _add_report(jobs: Jobs) -> None:
    text = "a run as one HTML page that needs nothing but itself"
    job = jobs.add_parser("report", help=text, description=text, allow_abbrev=False)
    job.add_argument("run", metavar="RUN", help="folder of a run")
    job.add_argument("--output", metavar="FILE.html", help="where the page goes (default: report.html in RUN)")


def _add_soak(jobs: Jobs) -> None:
    text = "train on two local workers under a random schedule of faults, and compare the end with a clean run"
    job = jobs.add_parser("soak", help=text, description=text, allow_abbrev=False)
    job.add_argument("--minutes", type=_number, default=20, help="how long faults come (default: 20)")
    job.add_argument("--seed", type=partial(_number, least=0), default=0, help="of the schedule (default: 0)")
    job.add_argument("--folder", default="runs/soak", help="where everything goes; must not exist (default: runs/soak)")


def _number(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        what = "a positive whole number" if least == 1 else f"a whole number from {least} up"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return int(text)


def _several(take: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    """Parts with commas between; each once, in their order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty part")
    return tuple(dict.fromkeys(take(part) for part in parts))
