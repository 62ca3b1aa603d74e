"""What the command line understands, and what it refuses."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from hse_dist.cli.benchmarks import BENCHMARKS, RESUMING
from hse_dist.cli.parser import parse


@pytest.mark.parametrize(
    "line",
    [
        "evaluate x.toml a.b=1 c.d=2 --baseline ease --split valid",
        "evaluate x.toml --baseline ease a.b=1 c.d=2 --split valid",
        "evaluate --split valid x.toml a.b=1 --baseline ease c.d=2",
        "evaluate --split valid --baseline ease x.toml a.b=1 c.d=2",
    ],
)
def test_overrides_may_stand_anywhere(line):
    words = parse(line.split())
    assert (words.config, words.overrides, words.split, words.baseline) == (
        "x.toml",
        ["a.b=1", "c.d=2"],
        "valid",
        "ease",
    )


@pytest.mark.parametrize(
    ("line", "folder", "overrides"),
    [
        ("evaluate x.toml a.b=1", None, ["a.b=1"]),
        ("evaluate x.toml a.b=1 --export", "", ["a.b=1"]),
        ("evaluate x.toml --export --split valid a.b=1", "", ["a.b=1"]),
        ("evaluate x.toml a.b=1 --export c.d_e.f=2 g.h=3", "", ["a.b=1", "c.d_e.f=2", "g.h=3"]),
        ("evaluate x.toml --export runs/mine/export a.b=1", "runs/mine/export", ["a.b=1"]),
        ("evaluate x.toml --export ./a.b=1", "./a.b=1", []),
    ],
)
def test_an_override_is_not_taken_for_the_folder_of_an_export(line, folder, overrides):
    words = parse(line.split())
    assert (words.export, words.overrides) == (folder, overrides)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "required: JOB"),
        ("fly x.toml", "invalid choice: 'fly'"),
        ("train", "required: CONFIG"),
        ("train x.toml --fast a.b=1", "unrecognized arguments: --fast"),
        ("train x.toml a.b=1 --seed 3", "unrecognized arguments: --seed"),
        ("evaluate x.toml --export --baseline ease", "not allowed with argument --export"),
        ("evaluate --export x.toml a.b=1", "CONFIG comes first"),
        ("evaluate x.toml --split train", "invalid choice: 'train'"),
        ("evaluate x.toml --baseline svd", "invalid choice: 'svd'"),
        ("evaluate x.toml --baseline hse --bytes 0", "'0' is not a positive whole number"),
        ("evaluate x.toml --bytes 64", "--bytes needs --baseline"),
        ("recommend there", "one of the arguments --items --histories is required"),
        ("recommend there --items 1 --histories x", "not allowed with"),
        ("recommend there --histories x", "--histories needs --output"),
        ("recommend there --items 1 2", "unrecognized arguments: 2"),
        ("recommend there --items 1 -k 0", "'0' is not a positive whole number"),
        ("benchmark step --rows many", "'many' is not a positive whole number"),
        ("benchmark", "required: KIND"),
        ("benchmark fly", "invalid choice: 'fly'"),
        ("benchmark quality --data a,,b", "'a,,b' has an empty part"),
        ("benchmark quality --bytes 64,0", "'0' is not a positive whole number"),
        ("benchmark quality --seeds 0,-1", "'-1' is not a whole number from 0 up"),
        ("benchmark step --device tpu", "invalid choice: 'tpu'"),
    ],
)
def test_words_that_do_not_fit_end_with_a_message_and_exit_code_2(line, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(line.split())
    shown = capsys.readouterr()
    assert caught.value.code == 2 and shown.out == ""
    assert message in shown.err


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_options_of_a_benchmark_are_its_arguments(kind):
    words = vars(parse(["benchmark", kind]))
    assert (words.pop("job"), words.pop("kind"), words.pop("folder")) == ("benchmark", kind, "runs/benchmark")
    function = getattr(import_module(f"hse_dist.benchmark.{kind}"), f"benchmark_{kind}")
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    if kind in RESUMING:
        assert str(defaults.pop("folder")) == "runs/benchmark"
    assert words == defaults


def test_lists_and_flags_of_a_benchmark():
    words = parse(["benchmark", "quality", "--data", "a, b,a", "--seeds", "0", "--retry"])
    assert (words.data, words.seeds, words.retry, words.show) == (("a", "b"), (0,), True, False)
