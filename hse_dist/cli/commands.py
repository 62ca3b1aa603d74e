"""The jobs behind the command line's words.

In: the parsed words of a job. Out: its JSON-able result. Nothing is decided here: a command loads the configuration and
calls the one function that does the work, imported at that moment.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hse_dist.config import Config, load_config

Result = dict[str, Any]


def prepare(words: Namespace) -> Result:
    """Raw log → prepared folder."""
    config = _config(words)
    from hse_dist.cluster import connect
    from hse_dist.data.prepare import prepare as run

    with connect(config.cluster):
        return run(config, extend=words.extend)


def train(words: Namespace) -> Result:
    """Prepared folder → run folder."""
    config = _config(words)
    if words.follow:
        from hse_dist.train.follow import follow

        return follow(config)
    from hse_dist.train.driver import train as run

    return run(config)


def simulate(words: Namespace) -> Result:
    """As `train`, on a cluster that is all this machine."""
    from hse_dist.simulate.run import Loss
    from hse_dist.simulate.run import simulate as run

    losses = {"killed": words.kill_node, "parted": words.part_node}
    return run(
        words.config,
        words.overrides,
        nodes=words.nodes,
        workers_per_node=words.workers_per_node,
        loss=next((Loss(how, step) for how, step in losses.items() if step is not None), None),
        minutes=words.minutes,
    )


def submit(words: Namespace) -> Result:
    """A job's words → what the job answers from a cluster."""
    config = _config(words)
    from hse_dist.submit.paths import absolute
    from hse_dist.submit.run import Sending, job_words, recommend_words
    from hse_dist.submit.run import submit as run

    text, here = Path(words.config).read_text(encoding="utf-8"), Path.cwd()
    paths = absolute(config, here)
    if words.submitted == "recommend":
        remote = recommend_words(config, paths, words.options, here)
    else:
        remote = job_words(words.submitted, words.overrides, paths, words.options)
    sending = Sending(
        words.address, words.working_dir, words.install, words.torch_index, not words.no_wait, words.minutes
    )
    return run(config, text, remote, paths, sending)


def evaluate(words: Namespace) -> Result:
    """Run folder, an export or a baseline → metrics."""
    config = _config(words)
    if words.export is not None:
        from hse_dist.export.held_out import evaluate_export

        return evaluate_export(config, words.split, words.export or None)
    if words.baseline:
        return _evaluate_baseline(config, words.split, words.baseline, words.bytes)
    from hse_dist.evaluate.driver import evaluate as run

    return run(config, words.split)


def _evaluate_baseline(config: Config, split: str, name: str, size: int | None) -> Result:
    from hse_dist.baselines.registry import BASELINES, evaluate_baseline
    from hse_dist.data.made_with import open_prepared
    from hse_dist.evaluate.metrics import write_users
    from hse_dist.files import write_json
    from hse_dist.progress import busy
    from hse_dist.run_folder import RunFolder

    prepared, folder = open_prepared(config), RunFolder(config)
    if folder.started:
        # its metrics lie beside those of the run, to be compared user by user
        folder.check_data(prepared)
    seed = config.data.split.seed
    with busy("evaluate", name):
        result, users = evaluate_baseline(
            name, prepared, split, bytes_per_item=size, seed=seed, users=config.evaluate.users
        )
    answer = {"baseline": name, "split": split, "seed": seed, **result}
    stem = f"{split}-{name}-{size}" if BASELINES[name].sized else f"{split}-{name}"
    write_users(folder.path / "evaluation" / f"{stem}-users.parquet", users)
    write_json(folder.path / "evaluation" / f"{stem}.json", answer)
    return answer


def compare(words: Namespace) -> Result:
    """Metrics of users of two models → difference and interval."""
    from dataclasses import asdict

    from hse_dist.evaluate.bootstrap import compare as run

    return {"metric": words.metric, **asdict(run(words.ours, words.theirs, metric=words.metric))}


def export(words: Namespace) -> Result:
    """Run folder → export, or what changed since one."""
    config = _config(words)
    from hse_dist.export.writer import export as run

    return run(config, words.since, words.to)


def repack(words: Namespace) -> Result:
    """Run folder → one of fewer live entries."""
    from hse_dist.checkpoint.repack import repack as run

    return run(words.run, words.live, words.to)


def recommend(words: Namespace) -> Result:
    """Export and histories → recommendations."""
    if words.histories:
        from hse_dist.export.batch import recommend_file

        return recommend_file(words.export, words.histories, words.output, words.k)
    ids = [text.strip() for text in words.items.split(",") if text.strip()]
    return _recommend_one(words.export, ids, words.feature, words.k)


def _recommend_one(folder: str, ids: list[str], given: list[tuple[str, list[str]]], k: int) -> Result:
    from hse_dist.export.recommender import Recommender

    recommender = Recommender.load(folder)
    history = [_typed(text, recommender.item_ids.type) for text in ids]
    features: dict[str, list[Any]] = {}
    for name, values in given:
        kind = recommender.contexts.type_of(name) if name in recommender.features else None
        features.setdefault(name, []).extend(_typed(text, kind) for text in values)
    answer = recommender.recommend(history, k, features=features or None)
    found = {"history": history, "items": answer.items, "scores": answer.scores, "unknown": answer.unknown}
    return {**found, "features": features, "unknown_features": answer.unknown_features} if features else found


def _typed(text: str, kind: Any) -> int | str:
    """The command line has only texts; one that is no number stays a text, and is reported as unknown."""
    import pyarrow as pa

    whole = kind is not None and pa.types.is_integer(kind)
    return int(text) if whole and text.removeprefix("-").isdecimal() else text


def serve(words: Namespace) -> Result:
    """Export → answers over HTTP, until somebody ends it."""
    from hse_dist.serve.options import Limits, parse_options
    from hse_dist.serve.run import run

    options = {name: value for name, value in vars(words).items() if name != "job"}
    limits = {name: options.pop(name) for name in Limits.model_fields}
    return run(parse_options({**options, "limits": limits}))


def benchmark(words: Namespace) -> Result:
    """Shapes → figures, a table, a file and a picture."""
    from hse_dist.benchmark.report import finish, open_folder
    from hse_dist.cli.benchmarks import measure

    options = {key: value for key, value in vars(words).items() if key not in ("job", "kind", "folder")}
    folder = open_folder(words.folder)
    return finish(measure(words.kind, options, folder), folder)


def demo(words: Namespace) -> Result:
    """Everything, in order."""
    _config(words)
    from hse_dist.cli.demo import demo as run

    return run(words.config, words.overrides, Path(words.folder))


def plan(words: Namespace) -> Result:
    """Shape of a run and a cluster → bytes, time, whether it fits."""
    from hse_dist.config import WireSettings
    from hse_dist.plan.report import plan as run
    from hse_dist.plan.shape import Shape

    chosen = dict(vars(words))
    day = chosen.pop("interactions_per_day")
    wire = {name: chosen.pop(name) for name in ("values", "gradients", "gradient_slots")}
    chosen["gains"], chosen["even"] = chosen.pop("row_norm") == "free", chosen.pop("even_rows")
    chosen.pop("job")
    return run(Shape(**chosen, wire=WireSettings(**wire)), day)


def inspect(words: Namespace) -> Result:
    """Run or export → neighbours, columns, lengths."""
    from hse_dist.inspect.look import inspect as run
    from hse_dist.inspect.look import show
    from hse_dist.inspect.place import open_place

    found = run(open_place(words.place), words.item, words.k)
    show(found)
    return found


def report(words: Namespace) -> Result:
    """Run folder → one HTML page."""
    from hse_dist.report.page import report as run

    return run(Path(words.run), Path(words.output) if words.output else None)


def doctor(words: Namespace) -> Result:
    """Installation, machine, cluster → findings."""
    import time

    from hse_dist.doctor.examine import examine
    from hse_dist.doctor.finding import result, show

    config, began = (_config(words) if words.config else Config()), time.perf_counter()
    folders = [config.run.folder, config.data.folder, *words.folder]
    address = words.address or config.cluster.address or ""
    found = examine(folders, address, cuda=config.cluster.device == "cuda")
    show(found)
    return result(found, time.perf_counter() - began)


def soak(words: Namespace) -> Result:
    """Minutes and a seed → what faults have cost."""
    from hse_dist.errors import RunFolderError
    from hse_dist.soak.run import soak as run

    folder = Path(words.folder)
    if folder.exists():
        raise RunFolderError(f"{folder} is there already.", cause="Choose another one, or remove it.")
    return run(words.minutes, words.seed, folder)


def _config(words: Namespace) -> Config:
    return load_config(words.config, words.overrides)


JOBS = (
    prepare,
    train,
    simulate,
    submit,
    evaluate,
    compare,
    export,
    repack,
    recommend,
    serve,
    benchmark,
    demo,
    doctor,
    plan,
    inspect,
    report,
    soak,
)
COMMANDS: dict[str, Callable[[Namespace], Result]] = {function.__name__: function for function in JOBS}
