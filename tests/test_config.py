"""Settings: every mistake is reported, once, with its path; what is right is frozen and comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hse_dist.config import MAX_DIMS, Config, dump_config, load_config, parse_config
from hse_dist.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


def mistakes(raw: dict) -> list[str]:
    """The lines of the one message."""
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, "x.toml")
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"{len(lines)} mistake") and first.endswith("x.toml:")
    return [line.removeprefix("  - ") for line in lines]


def write(folder: Path, text: str) -> Path:
    path = folder / "x.toml"
    path.write_text(text)
    return path


def test_all_kinds_of_mistakes_come_in_one_message_with_dotted_paths(tmp_path):
    path = write(
        tmp_path,
        """
        [train]
        epochs = "many"
        [tables.item]
        dims = 3
        [data]
        min_rating = 4.0
        [data.split]
        valid = 0.5
        test = 0.5
        sed = 1
        """,
    )
    overrides = [
        "model.input_dropout=1.5",
        "run.seed=1979-05-27",
        "train.epochs.first=1",
        "sparsity.budget.floor=99",
        "x",
    ]
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value).splitlines() == [
        f"10 mistakes in the configuration {path}:",
        "  - train.epochs.first: epochs is a value, not a section",
        "  - 'x': an override has the form section.key=value",
        '  - run.seed: Input should be a valid integer (given: {"date": "1979-05-27"})',
        "  - data.split.sed: unknown setting",
        f'  - tables.item.dims: Input should be a whole number from 4 to {MAX_DIMS}, or "items" (given: 3)',
        "  - model.input_dropout: Input should be less than 1 (given: 1.5)",
        '  - train.epochs: Input should be a valid integer (given: "many")',
        "  - data.split.valid = 0.5 and data.split.test = 0.5 leave no users to train on",
        "  - data.min_rating = 4.0 needs data.columns.rating",
        "  - sparsity.budget.floor = 99 exceeds tables.item.live = 32",
    ]


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"train": {"epochs": True}}, "train.epochs"),
        ({"train": {"epochs": 1.0}}, "train.epochs"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
        ({"model": {"score_clip": float("inf")}}, "model.score_clip"),
        ({"run": {"folder": 1}}, "run.folder"),
        ({"run": 1}, "run"),
        ({"tables": {"item": {"dims": MAX_DIMS + 1}}}, "tables.item.dims"),
        ({"tables": {"item": {"dims": True}}}, "tables.item.dims"),
        ({"tables": {"item": {"dims": "rows"}}}, "tables.item.dims"),
        ({"tables": {"item": {"chunk_width": 12}}}, "tables.item.chunk_width"),
        ({"data": {"features": {"x": {"of": "user", "column": "c", "separator": ""}}}}, "data.features.x.separator"),
    ],
)
def test_one_wrong_value_is_one_mistake(raw, path):
    [line] = mistakes(raw)
    assert line.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({}, "Field required. Input should be 'user' or 'item'"),
        ({"of": "users"}, "Input should be 'user' or 'item' (given: \"users\")"),
    ],
)
def test_what_lacks_a_setting_is_left_out_where_others_are_looked_for(feature, message):
    features = {"zip": {"column": "zip", **feature}, "zip2": {"of": "item"}}
    lines = mistakes({"data": {"features": features}, "tables": {"features": {"zip": {}}}})
    assert lines == [
        f"data.features.zip.of: {message}",
        "data.features.zip2.column is missing: an item has a row of its own already",
        'model.kind = "autoencoder" has no use for tables.features: set model.kind = "two_tower"',
    ]


def test_column_wise_sharding_is_refused_with_the_reason():
    [line] = mistakes({"tables": {"item": {"sharding": "column_wise"}}})
    assert line.startswith("tables.item.sharding: column_wise would put the slots of a chunk on different ranks")
    [line] = mistakes({"tables": {"item": {"sharding": "data_parallel"}}})
    assert "'row_wise' or 'table_wise'" in line


@pytest.mark.parametrize("wrong", [0.0, -1.0, "x", True, [5.0], [5.0, -1.0], [5.0] * 17])
def test_one_regularization_or_some_to_choose_from(wrong: object) -> None:
    assert parse_config({"sparsity": {"local_inverse": {"regularization": 5}}}, "x").sparsity is not None
    both = parse_config({"sparsity": {"local_inverse": {"regularization": [5, 2.5]}}}, "x")
    assert both.sparsity.local_inverse.regularization == (5.0, 2.5)
    [line] = mistakes({"sparsity": {"local_inverse": {"regularization": wrong}}})
    assert line.startswith("sparsity.local_inverse.regularization: Input should be a number above 0, or a list of 2")


DENSE = {"item": {"kind": "dense", "dims": 64}}


AGE = {"features": {"x": {"of": "user", "column": "c"}}}


def towers(data: dict | None = None, **sections: dict) -> dict:
    return {"tables": {"features": {"x": {}}}, "model": {"kind": "two_tower"}, "data": data or {}, **sections}


def gradual(start: str = "local_inverse", **schedule: object) -> dict:
    return {"sparsity": {"start": start, "schedule": {"kind": "gradual", "live_start": 64, **schedule}}}


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        ({"data": {"split": {"target_order": "last"}}}, ("data.split.target_order", "data.columns.timestamp")),
        ({"data": {"source": "synthetic"}}, ("data.source", "data.synthetic")),
        ({"data": {"synthetic": {}}}, ("data.source", "data.synthetic")),
        ({"tables": DENSE, "model": {"row_norm": "unit"}}, ("tables.item.kind", "sparsity.start")),
        ({"tables": DENSE, "sparsity": {"start": "random"}}, ("tables.item.kind", "model.row_norm")),
        (
            {
                "tables": {"item": {"kind": "dense", "dims": 66}},
                "sparsity": {"start": "random"},
                "model": {"row_norm": "unit"},
            },
            ("tables.item.kind", "tables.item.dims"),
        ),
        (
            {
                "tables": {"item": {"kind": "dense", "dims": 4096}},
                "sparsity": {"start": "random"},
                "model": {"row_norm": "unit"},
                "cluster": {"device": "cuda"},
            },
            ("GPU kernels", "tables.item.dims"),
        ),
        ({"model": {"row_norm": "unit"}}, ("sparsity.start", "model.row_norm")),
        ({"tables": {"item": {"dims": 64}}}, ("sparsity.start", "tables.item.dims")),
        (
            {"data": {"split": {"valid": 0.0}}, "sparsity": {"local_inverse": {"regularization": [20.0, 50.0]}}},
            ("sparsity.local_inverse.regularization", "data.split.valid"),
        ),
        (
            {"sparsity": {"local_inverse": {"pattern": "greedy", "entries": 200}}},
            ("sparsity.local_inverse.candidates = 200", "sparsity.local_inverse.entries = 200"),
        ),
        (
            {"tables": {"item": {"dims": 16}}, "sparsity": {"start": "random"}},
            ("tables.item.live = 32", "tables.item.dims = 16"),
        ),
        ({"sparsity": {"budget": {"ceiling": 31}}}, ("sparsity.budget.ceiling = 31", "tables.item.live = 32")),
        ({"sparsity": {"budget": {"floor": 33}}}, ("sparsity.budget.floor = 33", "tables.item.live = 32")),
        ({"sparsity": {"schedule": {"kind": "one_shot"}}}, ("sparsity.schedule.kind", "sparsity.schedule.live_start")),
        (
            {"sparsity": {"schedule": {"live_start": 64}}},
            ("sparsity.schedule.kind", "sparsity.schedule.live_start = 64"),
        ),
        (gradual(live_start=31), ("sparsity.schedule.live_start = 31", "tables.item.live = 32")),
        (gradual(live_start=129), ("sparsity.schedule.live_start = 129", "sparsity.budget.ceiling = 128")),
        (gradual(fall_begin=0.6), ("sparsity.schedule.fall_begin = 0.6", "sparsity.schedule.fall_end = 0.5")),
        (
            gradual(kind="lottery", rewind=0.25, rounds=2),
            ("sparsity.schedule.rewind = 0.25", "sparsity.schedule.fall_end = 0.5", "sparsity.schedule.rounds = 2"),
        ),
        (
            {"tables": DENSE, "model": {"row_norm": "unit"}, **gradual(start="random")},
            ("tables.item.kind", 'sparsity.schedule.kind = "gradual"'),
        ),
        ({"sparsity": {"schedule": {"interval": 3}}}, ("sparsity.grow.window = 4", "sparsity.schedule.interval = 3")),
        (
            {"sparsity": {"drop": {"kind": "fisher"}, "grow": {"kind": "none"}}},
            ("sparsity.drop.kind", "sparsity.grow.kind"),
        ),
        (
            {"sparsity": {"drop": {"kind": "movement"}, "schedule": {"kind": "static"}}},
            ("sparsity.drop.kind", "sparsity.schedule.kind"),
        ),
        ({"data": {"features": {"x": {"of": "item"}}}}, ("data.features.x.column",)),
        (
            {"data": {"features": {"x": {"of": "user", "source": "t"}}}},
            ("data.features.x.column", "data.features.x.source"),
        ),
        (
            {"data": {"features": {"x": {"of": "user", "separator": "|"}}}},
            ("data.features.x.column", "data.features.x.separator = '|'"),
        ),
        ({"data": {"source": "l", "extendable": True, **AGE}}, ("data.extendable", "data.features")),
        (towers(), ("tables.features.x", "data.features.x: there are none")),
        (towers({"features": {"y": AGE["features"]["x"]}}), ("tables.features.x", "data.features.x: there are y")),
        (towers(AGE, model={"kind": "autoencoder"}), ("model.kind", "tables.features")),
        ({"model": {"kind": "two_tower"}}, ("model.kind", "tables.features")),
        (towers({"features": {"x": {"of": "user"}}}), ("tables.features.x", 'set data.split.kind = "within_users"')),
        (towers(AGE, run={"continues": "r"}), ("run.continues", "tables.features")),
        (towers(AGE, sparsity={"grow": {"kind": "co_occurrence"}}), ("sparsity.grow.kind", "tables.features")),
        (
            towers(AGE, tables={"item": {"dims": 64}, "features": {"x": {"live": 80}}}, sparsity={"start": "random"}),
            ("tables.features.x.live = 80", "tables.item.dims = 64"),
        ),
        (
            towers(AGE, sparsity={"budget": {"floor": 9}}),
            ("tables.features.x.live = 8", "sparsity.budget.floor = 9"),
        ),
        (
            towers(AGE, tables={"features": {"x": {"live": 200}}}),
            ("tables.features.x.live = 200", "sparsity.budget.ceiling = 128"),
        ),
        ({"model": {"loss": "bpr", "score_clip": 0.5}}, ("model.score_clip = 0.5", "model.loss")),
        (towers(AGE, sparsity={"structure": {"kind": "block"}}), ("tables.features", "sparsity.structure.kind")),
        (towers({"features": {"x": {"of": "item", "column": "c"}}}), ("tables.features.x", "sparsity.start")),
        (
            towers(AGE, sparsity={"budget": {"kind": "row"}, "schedule": {"kind": "gradual", "live_start": 64}}),
            ("tables.features", "sparsity.schedule.kind", "sparsity.budget.kind"),
        ),
        (
            {"sparsity": {"budget": {"kind": "popularity"}}, "tables": {"item": {"capacity_power": 0.5}}},
            ("sparsity.budget.kind", "tables.item.capacity_power"),
        ),
    ],
)
def test_contradiction_names_the_settings_that_take_part(raw, paths):
    [line] = mistakes(raw)
    assert all(path in line for path in paths)


def test_contradiction_with_a_setting_that_is_wrong_anyway_is_not_reported():
    # live falls back to its default for the second look: a ceiling of 16 would contradict that, not what was written
    assert len(mistakes({"tables": {"item": {"live": "x"}}, "sparsity": {"budget": {"ceiling": 16}}})) == 1
    # but an unknown key hides nothing
    assert len(mistakes({"s": 1, "sparsity": {"budget": {"ceiling": 16}}})) == 2


def test_overrides_replace_add_and_remove(tmp_path):
    path = write(tmp_path, '[data.columns]\nrating = "stars"\n[train]\nepochs = 3\n')
    overrides = [
        "train.epochs = 5",
        "train.learning_rate=1e-3",
        "run.folder=runs/a b=c",
        "tables.item.dims=items",
        "data.columns.rating=none",
        'run.resume="must"',
    ]
    config = load_config(path, overrides)
    assert (config.train.epochs, config.train.learning_rate, config.run.folder) == (5, 0.001, "runs/a b=c")
    assert (config.tables.item.dims, config.data.columns.rating, config.run.resume) == ("items", None, "must")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "There is no configuration file"), (b"a = = 1", "is not TOML"), (b"\xff", "cannot be read")],
)
def test_file_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_configuration_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Config().train.epochs = 3


@given(
    seed=st.integers(0, 2**63),
    rate=st.floats(1e-12, 1e6),
    folder=st.text(st.characters(codec="utf-8")),
    clip=st.none() | st.floats(1e-6, 1e6),
    dims=st.just("items") | st.integers(32, MAX_DIMS),
)
def test_dump_round_trips_and_is_canonical(seed, rate, folder, clip, dims):
    raw = {
        "train": {"learning_rate": rate},
        "run": {"folder": folder, "seed": seed},
        "model": {"score_clip": clip},
        "tables": {"item": {"dims": dims}},
        "sparsity": {"start": "random"},
    }
    config = parse_config(raw, "one")
    text = dump_config(config)
    again = parse_config(json.loads(text), "other")
    assert again == config and dump_config(again) == text
    assert dump_config(parse_config(dict(reversed(raw.items())), "reversed")) == text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_is_valid(path):
    load_config(path)


def test_every_setting_says_what_it_means():
    def undocumented(model: type[pydantic.BaseModel], path: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                found += undocumented(kind, f"{path}{name}.")
            elif not field.description:
                found.append(f"{path}{name}")
        return found

    assert undocumented(Config, "") == []


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"temperature": {"of": "user", "column": "c"}}, "data.features.temperature: Input should be another name"),
        ({"item": {"of": "user", "column": "c"}}, "data.features.item: Input should be another name"),
        ({"x": {"of": "user", "column": "c", "separator": ""}}, "data.features.x.separator: "),
    ],
)
def test_features_have_names_and_separators_of_their_own(features: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"data": {"features": features}}, "x.toml")
    (line,) = str(caught.value).splitlines()[1:]
    assert message in line


@pytest.mark.parametrize("workers", ["4..2", "a", "0..2", "2..", "..4", "2..3..4", -1, 2.5, True, ""])
def test_workers_that_are_no_number_and_no_range_are_one_message(workers):
    with pytest.raises(ConfigError) as caught:
        parse_config({"cluster": {"workers": workers}}, "x.toml")
    (line,) = str(caught.value).splitlines()[1:]
    assert 'cluster.workers: Input should be a whole number from 0, or a range like "2..4"' in line


def test_workers_are_a_number_or_a_range():
    for workers, fewest, most in ((0, 0, 0), (3, 3, 3), ("2..4", 2, 4), ("2..2", 2, 2)):
        cluster = parse_config({"cluster": {"workers": workers}}, "x.toml").cluster
        assert (cluster.fewest, cluster.most) == (fewest, most)
