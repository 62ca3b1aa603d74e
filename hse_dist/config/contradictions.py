"""Settings that are fine alone and wrong together.

In: a configuration of which every single setting is valid. Out: one sentence a contradiction, with the full dotted path
of every setting that takes part (a sentence about a setting that is wrong by itself is left out by its path).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hse_dist.config.data import DataSettings
    from hse_dist.config.sparsity import SparsitySettings
    from hse_dist.config.tables import TableSettings
    from hse_dist.config.whole import Config

FALLING = ("one_shot", "gradual", "lottery")
"""Kinds of a schedule by which the number of live entries falls."""
MOST_DENSE_ON_GPU = 2048
"""Columns of a row that fbgemm's CUDA kernels update: they refuse more with "Check failed: max_D <= 2048"."""


def contradictions(config: Config) -> list[str]:
    """All contradictions of the configuration; empty if there are none."""
    item, sparsity = config.tables.item, config.sparsity
    problems = [*_data(config.data), *_memory(config), *_continued(config), *_features(config), *_loss(config)]
    if item.kind == "dense":
        return problems + list(_dense(config))
    problems += [*_start(config), *_budget(item, sparsity), *_rewire(sparsity)]
    return [*problems, *_schedule(item, sparsity), *_blocks(item, sparsity), *_groups(item, sparsity)]


def _data(data: DataSettings) -> Iterator[str]:
    split = data.split
    if split.valid + split.test >= 1.0:
        yield f"data.split.valid = {split.valid} and data.split.test = {split.test} leave no users to train on"
    if data.min_rating is not None and data.columns.rating is None:
        yield f"data.min_rating = {data.min_rating} needs data.columns.rating"
    if split.target_order == "last" and data.columns.timestamp is None:
        yield 'data.split.target_order = "last" needs data.columns.timestamp'
    if data.evict_after_days is not None and not (data.extendable and data.columns.timestamp):
        needs = "data.extendable = true and data.columns.timestamp"
        yield f"data.evict_after_days = {data.evict_after_days} needs {needs}"
    if data.extendable and (data.source == "synthetic" or data.source.startswith("catalog:")):
        yield f'data.extendable = true is for a log that grows, but data.source = "{data.source}"'
    if data.admission_mb is not None:
        size = f"data.admission_mb = {data.admission_mb:g}"
        if data.min_item_count == 1:
            yield (
                f"{size} passes over items with too few users, but data.min_item_count = 1: raise it, or leave out "
                "data.admission_mb"
            )
        if 2 * data.admission_mb > data.memory_mb:
            yield f"{size} is more than half of what a task may take, data.memory_mb = {data.memory_mb}"
    if (data.source == "synthetic") != (data.synthetic is not None):
        yield 'data.source = "synthetic" and the section data.synthetic go together'


def _features(config: Config) -> Iterator[str]:
    data, tables, model = config.data, config.tables.features, config.model
    for name, feature in data.features.items():
        own = f"data.features.{name}"
        if feature.column is None and feature.of == "item":
            yield f"{own}.column is missing: an item has a row of its own already"
        if feature.column is None and feature.source:
            yield f"{own}.column is missing: {own}.source = {feature.source!r} has values"
        for setting, usual in (("key", None), ("separator", None), ("format", "auto")):
            if feature.column is None and (value := getattr(feature, setting)) != usual:
                yield f"{own}.column is missing: without it {own}.{setting} = {value!r} has no use"
    for name in tables.keys() - data.features.keys():
        there = f"there are {', '.join(data.features)}" if data.features else "there are none"
        yield f"tables.features.{name} needs data.features.{name}: {there}"
    if tables and model.kind != "two_tower":
        yield f'model.kind = "{model.kind}" has no use for tables.features: set model.kind = "two_tower"'
    if model.kind == "two_tower" and not tables:
        yield 'model.kind = "two_tower" needs a section tables.features.NAME'
    for name in sorted(tables.keys() & data.features.keys()):
        yield from _feature_table(config, name)
    kind, budget = config.sparsity.schedule.kind, config.sparsity.budget.kind
    if tables and kind in FALLING and budget != "global":
        yield (
            f'tables.features with sparsity.schedule.kind = "{kind}" need sparsity.budget.kind = "global", '
            f'not "{budget}"'
        )
    if data.features and data.extendable:
        yield "data.extendable = true cannot be together with data.features yet"
    if tables and config.run.continues is not None:
        yield f'run.continues = "{config.run.continues}" cannot be together with tables.features yet'
    if tables and (structure := config.sparsity.structure.kind) != "single":
        yield f'tables.features are for single entries, but sparsity.structure.kind = "{structure}"'
    if tables and config.tables.item.kind == "dense":
        yield 'tables.features share a budget of live entries, but tables.item.kind = "dense"'
    if tables and (grow := config.sparsity.grow.kind) == "co_occurrence":
        yield f'sparsity.grow.kind = "{grow}" is of items of a history: rows of tables.features would never grow'


def _feature_table(config: Config, name: str) -> Iterator[str]:
    """Of a feature that has a table."""
    feature, dims, budget = config.data.features[name], config.tables.item.dims, config.sparsity.budget
    live = config.tables.features[name].live
    if feature.column is None and config.data.split.kind == "users":
        yield (
            f'tables.features.{name} has a row a user, and data.split.kind = "users" would never train some: '
            'set data.split.kind = "within_users"'
        )
    if feature.of == "item" and config.sparsity.start == "local_inverse":
        yield (
            f"tables.features.{name} is added to rows of items, but those of "
            'sparsity.start = "local_inverse" make scores of items lower by what they share: '
            'set sparsity.start = "random" or "hse"'
        )
    if isinstance(dims, int) and live > dims:
        yield f"tables.features.{name}.live = {live} exceeds tables.item.dims = {dims}"
    if not budget.floor <= live <= budget.ceiling:
        bounds = f"sparsity.budget.floor = {budget.floor} to sparsity.budget.ceiling = {budget.ceiling}"
        yield f"tables.features.{name}.live = {live} is not within {bounds}"


def _loss(config: Config) -> Iterator[str]:
    model = config.model
    if model.score_clip is not None and model.loss != "cosine":
        yield f'model.score_clip = {model.score_clip:g} is for model.loss = "cosine", not "{model.loss}"'

    if (teacher := config.train.teacher) is None:
        return
    name = f'train.teacher = "{teacher}"'
    if model.loss != "cosine":
        yield f'{name} gives scores for model.loss = "cosine", not "{model.loss}"'
    if model.score_clip is not None:
        yield f"{name} cannot be together with model.score_clip"
    if model.kind == "two_tower":
        yield f'{name} is for model.kind = "autoencoder", not "two_tower"'
    if teacher == config.run.folder:
        yield f"{name} is run.folder itself"


def _memory(config: Config) -> Iterator[str]:
    kernel = config.tables.item.kernel
    if kernel != "fused" and config.cluster.device != "cuda":
        device = config.cluster.device
        yield f'tables.item.kernel = "{kernel}" is for the memory of GPUs, but cluster.device = "{device}"'


def _continued(config: Config) -> Iterator[str]:
    item, sparsity, continues = config.tables.item, config.sparsity, config.run.continues
    if item.spare_columns and item.dims != "items":
        yield f'tables.item.spare_columns = {item.spare_columns} needs tables.item.dims = "items"'
    if item.spare_columns and sparsity.structure.kind != "single":
        structure = sparsity.structure.kind
        yield f'tables.item.spare_columns is for single entries, but sparsity.structure.kind = "{structure}"'
    if continues is None:
        return
    name, kind = f'run.continues = "{continues}"', sparsity.schedule.kind
    if item.kind == "dense":
        yield f'{name} is for packed rows, but tables.item.kind = "dense"'
    if kind in FALLING:
        yield f'{name} goes on with fewer live entries already: sparsity.schedule.kind = "{kind}" would cut them again'
    if sparsity.structure.kind != "single":
        yield f'{name} adds rows of single entries, but sparsity.structure.kind = "{sparsity.structure.kind}"'
    if continues == config.run.folder:
        yield f"{name} is run.folder itself"


def _dense(config: Config) -> Iterator[str]:
    item, start = config.tables.item, config.sparsity.start
    if config.cluster.device == "cuda" and isinstance(item.dims, int) and item.dims > MOST_DENSE_ON_GPU:
        yield f"the GPU kernels train dense rows of {MOST_DENSE_ON_GPU} columns at most: tables.item.dims = {item.dims}"
    if not (isinstance(item.dims, int) and item.dims % 4 == 0):
        yield 'tables.item.kind = "dense" needs a tables.item.dims that is a multiple of 4'
    if start != "random":
        yield f'tables.item.kind = "dense" starts at random, but sparsity.start = "{start}"'
    if config.model.row_norm != "unit":
        yield 'tables.item.kind = "dense" has no gains: set model.row_norm = "unit"'
    if config.model.user_entries is not None:
        yield 'tables.item.kind = "dense" has dense user vectors: leave out model.user_entries'
    kind = config.sparsity.schedule.kind
    if kind in FALLING:
        yield f'tables.item.kind = "dense" keeps all its entries, but sparsity.schedule.kind = "{kind}"'
    structure = config.sparsity.structure.kind
    if structure != "single":
        yield f'tables.item.kind = "dense" keeps all its entries, but sparsity.structure.kind = "{structure}"'
    usual = type(item.wire)()
    changed = [f"tables.item.wire.{name}" for name, value in item.wire if value != getattr(usual, name)]
    if changed:
        yield f'tables.item.kind = "dense" sends whole rows: leave out {", ".join(changed)}'


def _start(config: Config) -> Iterator[str]:
    item, start = config.tables.item, config.sparsity.start
    if start == "local_inverse" and config.model.row_norm != "free":
        yield 'sparsity.start = "local_inverse" has negative gains: set model.row_norm = "free"'
    if start in ("local_inverse", "hse") and item.dims != "items":
        yield f'sparsity.start = "{start}" has one column an item: set tables.item.dims = "items"'
    inverse = config.sparsity.local_inverse
    if start == "local_inverse" and inverse.pattern == "greedy" and inverse.candidates <= inverse.entries:
        yield (
            f"sparsity.local_inverse.candidates = {inverse.candidates} leaves the greedy pattern no choice: it must be "
            f"above sparsity.local_inverse.entries = {inverse.entries}"
        )
    if start != "random" and config.data.split.valid == 0:
        own = config.sparsity.hse if start == "hse" else config.sparsity.local_inverse
        if isinstance(own.regularization, tuple):
            yield f"sparsity.{start}.regularization chooses by validation users: set data.split.valid above 0"


def _budget(item: TableSettings, sparsity: SparsitySettings) -> Iterator[str]:
    floor, ceiling = sparsity.budget.floor, sparsity.budget.ceiling
    slots = item.wire.gradient_slots
    if slots is not None and slots > item.chunk_width:
        yield f"tables.item.wire.gradient_slots = {slots} exceeds tables.item.chunk_width = {item.chunk_width}"
    if isinstance(item.dims, int) and item.live > item.dims:
        yield f"tables.item.live = {item.live} exceeds tables.item.dims = {item.dims}"
    if floor > item.live:
        yield f"sparsity.budget.floor = {floor} exceeds tables.item.live = {item.live}"
    if ceiling < item.live:
        yield f"sparsity.budget.ceiling = {ceiling} is below tables.item.live = {item.live}"
    if sparsity.budget.kind == "popularity" and item.capacity_power:
        yield 'sparsity.budget.kind = "popularity" has sparsity.budget.power: leave out tables.item.capacity_power'


def _rewire(sparsity: SparsitySettings) -> Iterator[str]:
    window, interval = sparsity.grow.window, sparsity.schedule.interval
    if (sparsity.drop.kind == "own") != (sparsity.drop.function is not None):
        yield 'sparsity.drop.kind = "own" and sparsity.drop.function go together'
    if sparsity.drop.by_gradient and sparsity.grow.kind == "none" and sparsity.schedule.kind == "fixed":
        yield f'sparsity.grow.kind = "none" drops nothing, so sparsity.drop.kind = "{sparsity.drop.kind}" has no use'
    if sparsity.drop.by_gradient and sparsity.schedule.kind == "static":
        yield f'sparsity.schedule.kind = "static" drops nothing: leave out sparsity.drop.kind = "{sparsity.drop.kind}"'
    if window > interval:
        yield f"sparsity.grow.window = {window} exceeds sparsity.schedule.interval = {interval}"


def _schedule(item: TableSettings, sparsity: SparsitySettings) -> Iterator[str]:
    schedule, ceiling = sparsity.schedule, sparsity.budget.ceiling
    kind, start = f'sparsity.schedule.kind = "{schedule.kind}"', schedule.live_start
    if schedule.kind not in FALLING:
        if start is not None:
            yield f"{kind} keeps the number of live entries, but sparsity.schedule.live_start = {start}"
        return
    if start is None:
        yield f"{kind} needs sparsity.schedule.live_start"
        return
    name = f"sparsity.schedule.live_start = {start}"
    if start < item.live:
        yield f"{name} is below tables.item.live = {item.live}"
    if isinstance(item.dims, int) and start > item.dims:
        yield f"{name} exceeds tables.item.dims = {item.dims}"
    if start > ceiling:
        yield f"{name} exceeds sparsity.budget.ceiling = {ceiling}"
    begin, end = schedule.fall_begin, schedule.fall_end
    if begin > end:
        yield f"sparsity.schedule.fall_begin = {begin} is after sparsity.schedule.fall_end = {end}"
    elif schedule.kind == "lottery" and schedule.rewind >= begin + (end - begin) / schedule.rounds:
        yield (
            f"sparsity.schedule.rewind = {schedule.rewind} does not come before the first of the cuts that "
            f"sparsity.schedule.fall_begin = {begin}, sparsity.schedule.fall_end = {end} and "
            f"sparsity.schedule.rounds = {schedule.rounds} give"
        )


def _blocks(item: TableSettings, sparsity: SparsitySettings) -> Iterator[str]:
    if sparsity.structure.kind != "block":
        return
    block, budget, start = sparsity.structure.block, sparsity.budget, sparsity.schedule.live_start
    name = f"sparsity.structure.block = {block}"
    if item.chunk_width % block:
        yield f"tables.item.chunk_width = {item.chunk_width} is no multiple of {name}"
    if isinstance(item.dims, int) and item.dims % block:
        yield f"tables.item.dims = {item.dims} is no multiple of {name}"
    if -(-budget.floor // block) * block > item.live:
        yield f"sparsity.budget.floor = {budget.floor} in whole blocks of {name} exceeds tables.item.live = {item.live}"
    for setting, live in (("tables.item.live", item.live), ("sparsity.schedule.live_start", start)):
        if live is None:
            continue
        if budget.ceiling // block * block < live <= budget.ceiling:
            yield f"sparsity.budget.ceiling = {budget.ceiling} in whole blocks of {name} is below {setting} = {live}"
        if budget.kind == "row" and live % block:
            yield f'sparsity.budget.kind = "row" needs whole blocks, but {setting} = {live} is no multiple of {name}'


def _groups(item: TableSettings, sparsity: SparsitySettings) -> Iterator[str]:
    if sparsity.structure.kind != "n_of_m":
        return
    n, m = sparsity.structure.n, sparsity.structure.m
    if n >= m:
        yield f"sparsity.structure.n = {n} is no limit on groups of sparsity.structure.m = {m} columns"
    elif isinstance(item.dims, int):
        room = item.dims // m * n + min(item.dims % m, n)
        if item.live > room:
            yield (
                f"tables.item.live = {item.live} exceeds the {room} entries that tables.item.dims = {item.dims}, "
                f"sparsity.structure.n = {n} and sparsity.structure.m = {m} allow a row"
            )
