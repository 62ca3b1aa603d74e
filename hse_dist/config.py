"""Settings: what a run is, in one frozen object.

In: a TOML file and `section.key=value` overrides. Out: a `Config`, or one `ConfigError` that lists every mistake with
its dotted path. Nothing is started before the whole configuration has been checked.

Settings of one thing stand in one section; the constraint is in the type, the meaning under the field.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from hse_dist.contradictions import contradictions
from hse_dist.errors import ConfigError
from hse_dist.parsing import override, validate

MAX_DIMS = 2**24 - 1
"""Columns are kept as float32 integers, exact below 2^24; one code is reserved for free slots."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def _dims(value: Any) -> Any:
    if value == "items" or (type(value) is int and 4 <= value <= MAX_DIMS):
        return value
    raise ValueError(f'Input should be a whole number from 4 to {MAX_DIMS}, or "items"')


# one message for both kinds of value, where pydantic would give one a kind
Dims = Annotated[int | Literal["items"], BeforeValidator(_dims)]


def _sharding(value: Any) -> Any:
    if value == "column_wise":
        raise ValueError(
            "column_wise would put the slots of a chunk on different ranks, so that no rank could rewire a row; "
            "use row_wise or table_wise"
        )
    return value


# TorchRec knows this kind, so a user may well ask for it: the answer is a reason, not a list
Sharding = Annotated[Literal["row_wise", "table_wise"], BeforeValidator(_sharding)]


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, docstrings under the fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RunSettings(Settings):
    folder: str = "runs/run"
    """Where the run lives: resolved configuration, start, checkpoints, metrics, evaluation."""
    seed: NonNegativeInt = 0
    """Seed of the random start, negatives, dropout, random growth and the order of users."""
    resume: Literal["auto", "never", "must"] = "auto"
    """What to do about a checkpoint in `folder`: use it if there is one, refuse it, or insist on it."""


class ColumnNames(Settings):
    user: str = "user_id"
    """Column of the user id."""
    item: str = "item_id"
    """Column of the item id."""
    timestamp: str | None = None
    """Column of the time; without it histories keep the order of the item rows."""
    rating: str | None = None
    """Column of the rating; needed by `min_rating`."""


class SplitSettings(Settings):
    valid: Fraction = 0.1
    """Share of users held out for validation."""
    test: Fraction = 0.1
    """Share of users held out for testing."""
    seed: NonNegativeInt = 0
    """Seed of the hash that assigns users, and of the random target."""
    target: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of a held-out user's history that is the target; the rest is the input."""
    target_order: Literal["random", "last"] = "random"
    """Which part is the target: a random one, or the last in time."""


class StreamSettings(Settings):
    window: PositiveInt = 4
    """Row groups that are shuffled together."""
    lanes: PositiveInt = 8
    """Windows open at a time over all ranks; ranks that divide it read nothing twice."""
    prefetch: PositiveInt = 4
    """Batches that the reading thread keeps ready."""


class DataSettings(Settings):
    source: str = ""
    """The raw log: a file, folder, glob or URI; `catalog:NAME`; or `synthetic`."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = "auto"
    """Format of the raw log; `auto` goes by the file names."""
    folder: str = "runs/data"
    """Where the prepared histories live."""
    columns: ColumnNames = ColumnNames()
    ids: Literal["auto", "integer", "string"] = "auto"
    """Type of the user and item ids; `auto` keeps that of the log (in text files: what the first lines look like)."""
    min_rating: float | None = None
    """Interactions with a lower rating are left out."""
    min_user_count: PositiveInt = 1
    """Users with fewer distinct items are left out."""
    min_item_count: PositiveInt = 1
    """Items with fewer distinct users are left out (counted once, before users are)."""
    split: SplitSettings = SplitSettings()
    tasks: PositiveInt = 2
    """Tasks that prepare at a time."""
    memory_mb: PositiveInt = 1024
    """Most memory that one prepare task takes beyond what its process held before, in MiB: buffers, hash tables, mapped
    pages, its part of the catalogue. About 16 MiB are not for buffers, so that less than 32 makes no sense. Files and
    Parquet row groups may be larger; one user's interactions, one Parquet page and one line of text cannot be divided.
    The driver holds arrays of the size of the catalogue beside it."""
    buckets: PositiveInt = 8
    """Partitions of the prepared histories, by a hash of the user."""
    users_per_row_group: PositiveInt = 1024
    """Users a row group of the prepared histories."""
    stream: StreamSettings = StreamSettings()
    synthetic: SyntheticSettings | None = None
    """Shape of the made-up log when `source` is `synthetic`."""


class SyntheticSettings(Settings):
    users: PositiveInt = 100_000
    """Users of the made-up log."""
    items: PositiveInt = 10_000
    """Items of the made-up log."""
    mean_history: PositiveInt = 20
    """Mean interactions a user."""
    seed: NonNegativeInt = 0
    """Seed of the made-up log."""


class WireSettings(Settings):
    values: Literal["float32", "float16"] = "float32"
    """Type of the values on their way from the owner of a row to the rank that trains it."""
    gradients: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the gradients on their way back."""
    gradient_slots: PositiveInt | None = None
    """r, how many of a chunk's gradients go back, the strongest ones; without it all."""
    feedback: bool = True
    """Whether a rank adds what it left out of a gradient to the next one for the same entry."""
    feedback_mb: PositiveInt = 256
    """Memory of a rank for what it left out, in MiB; where it does not suffice, for the most popular rows."""


class TableSettings(Settings):
    kind: Literal["packed", "dense"] = "packed"
    """Packed rows of live entries, or the dense baseline."""
    dims: Dims = "items"
    """D, the number of columns; `items` is one a row (full rank)."""
    live: Annotated[int, Field(ge=1, le=4096)] = 32
    """Mean live entries a row: the budget is live × rows."""
    chunk_width: Literal[8, 16, 32] = 16
    """Slots a chunk; a row is a run of chunks."""
    sharding: Sharding = "row_wise"
    """How TorchRec spreads the table over the ranks."""
    slack: NonNegativeFloat = 0.0
    """Slots beyond those of the start, as a share of it: room for rows of a random start to grow at others' cost."""
    capacity_power: NonNegativeFloat = 0.0
    """Random start: row lengths follow count^power (0: all the same)."""
    wire: WireSettings = WireSettings()
    """What chunks look like between ranks; one rank alone sends nothing, and loses nothing."""


class TablesSettings(Settings):
    item: TableSettings = TableSettings()


class ModelSettings(Settings):
    row_norm: Literal["unit", "free"] = "free"
    """Rows of length 1 without gains (ELSA), or free rows with a gain an item (contains HSE and EASE)."""
    input_dropout: Fraction = 0.0
    """Share of a history that is hidden from the input, not from the target."""
    score_clip: PositiveFloat | None = None
    """Scores are clipped to ± this before the loss."""
    compact_above: PositiveInt = 100_000
    """With more columns than this, a batch's columns are renumbered first."""


class LocalInverseSettings(Settings):
    regularization: PositiveFloat = 200.0
    """λ added to the diagonal of the Gram matrix."""
    entries: Annotated[int, Field(ge=1, le=1024)] = 100
    """m, the size of each item's pattern."""
    tasks: PositiveInt = 4
    """Ranges of items, solved by one task each."""


class HseSettings(Settings):
    regularization: PositiveFloat = 200.0
    """λ added to the diagonal of the Gram matrix."""
    max_items: PositiveInt = 30_000
    """Largest catalogue that the exact factorization accepts (it is items × items on the driver)."""


class BudgetSettings(Settings):
    kind: Literal["global", "row"] = "global"
    """Who gets the live entries: all rows compete, or each row keeps its own number."""
    floor: PositiveInt = 1
    """Live entries that every row keeps."""
    ceiling: PositiveInt = 128
    """Most live entries of a row (its capacity may be smaller)."""


class RewireSettings(Settings):
    interval: NonNegativeInt = 50
    """Steps between rewires; 0: never."""
    stop: Annotated[float, Field(ge=0.0, le=1.0)] = 0.75
    """Share of the run after which columns stay."""
    drop: Literal["magnitude"] = "magnitude"
    """What a live entry is worth: |value| · √|gain|."""
    drop_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    """Share of the live entries dropped by the first rewire."""
    drop_decay: Literal["cosine", "constant"] = "cosine"
    """How that share falls until `stop`."""
    grow: Literal["gradient", "random", "none"] = "gradient"
    """Which positions become live: the strongest loss gradient, random ones, or none (then nothing is dropped)."""
    window: PositiveInt = 4
    """Steps before a rewire over which gradients of candidates are gathered."""
    collect_users: PositiveInt = 128
    """Users of a batch whose gradients are gathered: a sample of them, the cost is in proportion."""
    explore: PositiveInt = 16
    """Strongest positions a candidate row and step that are sent to the row's owner."""
    memory_mb: PositiveInt = 256
    """Memory for what those users leave in such a step, and for blocks of dense gradients of the plain path, in MiB."""


class SparsitySettings(Settings):
    start: Literal["local_inverse", "hse", "random"] = "local_inverse"
    """Where the first live entries come from."""
    local_inverse: LocalInverseSettings = LocalInverseSettings()
    hse: HseSettings = HseSettings()
    budget: BudgetSettings = BudgetSettings()
    rewire: RewireSettings = RewireSettings()


class TrainSettings(Settings):
    epochs: NonNegativeInt = 10
    """Passes over the training users; 0: the start is the result."""
    batch_size: PositiveInt = 256
    """Users a rank and step."""
    negatives: NonNegativeInt = 2048
    """Uniform candidates a rank and step beside the batch's own items."""
    optimizer: Literal["rowwise_adagrad", "adagrad"] = "rowwise_adagrad"
    """Fused optimizer of the values."""
    learning_rate: PositiveFloat = 0.01
    """Rate of the values."""
    gain_learning_rate: NonNegativeFloat = 0.001
    """Rate of the gains."""
    decay: Literal["constant", "cosine"] = "cosine"
    """How both rates fall over the run."""
    warm_accumulator: NonNegativeFloat = 0.0
    """First value of the optimizer's accumulator; protects a good start from a first step of full size."""
    evaluate_every: PositiveInt = 1
    """Epochs between validations; the best checkpoint by validation is the result."""
    patience: NonNegativeInt = 0
    """Validations without a better one after which training stops; 0: never."""
    checkpoint_every: NonNegativeInt = 0
    """Steps between checkpoints beside those at each validation; 0: none."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics."""


class ClusterSettings(Settings):
    workers: NonNegativeInt = 2
    """Ray Train workers, one rank each; 0: train in this process without Ray."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the tables and the arithmetic live."""
    cpus_per_worker: PositiveInt = 1
    """Cores, and threads of arithmetic, a worker."""
    address: str | None = None
    """Ray cluster to join; without it RAY_ADDRESS, else a local one is started."""
    timeout_seconds: PositiveInt = 600
    """Limit of every wait for other ranks or the SparsityServer."""
    max_failures: NonNegativeInt = 2
    """Restarts of the workers before the run gives up."""


class EvaluateSettings(Settings):
    users: PositiveInt = 512
    """Held-out users ranked at a time by a rank."""
    items: PositiveInt = 8192
    """Items scored at a time; no matrix is larger than users × items."""
    metric: Literal["ndcg@100", "recall@20", "recall@50"] = "ndcg@100"
    """What validation compares."""


class ExportSettings(Settings):
    folder: str | None = None
    """Where the export goes; without it `export` in the run folder."""
    values: Literal["float32", "float16"] = "float32"
    """Type of the exported values."""


class CheckpointSettings(Settings):
    keep: PositiveInt = 2
    """Newest checkpoints kept beside the best one."""


class Config(Settings):
    """Everything a run needs to know."""

    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    tables: TablesSettings = TablesSettings()
    model: ModelSettings = ModelSettings()
    sparsity: SparsitySettings = SparsitySettings()
    train: TrainSettings = TrainSettings()
    cluster: ClusterSettings = ClusterSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = contradictions(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration of a TOML file with `section.key=value` overrides.

    Raises:
        ConfigError: the file cannot be read or parsed, or settings are wrong; all mistakes in one message.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The configuration file {path} is not TOML: {error}.") from None
    problems = [problem for text in overrides if (problem := override(raw, text))]
    return parse_config(raw, str(path), problems)


def parse_config(raw: dict[str, Any], origin: str, problems: list[str] | None = None) -> Config:
    """The configuration of a nested dictionary; `problems` found earlier join the same message.

    Raises:
        ConfigError: see `load_config`.
    """
    problems = list(problems or ())
    config, found = validate(Config, raw)
    problems += found
    if problems or config is None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        mistakes = "mistake" if len(problems) == 1 else "mistakes"
        raise ConfigError(f"{len(problems)} {mistakes} in the configuration {origin}:\n{lines}")
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as canonical JSON (sorted keys, one a line)."""
    return json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


DataSettings.model_rebuild()
Config.model_rebuild()
