"""Settings of the raw log, its preparation and its stream."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from hse_dist.config.base import SCHEMES, Fraction, Settings
from hse_dist.config.features import Features


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
    kind: Literal["users", "within_users"] = "users"
    """Who trains: users that are not held out; or all users, those that are held out with their inputs (without it a
    row of a user's own could not be trained)."""
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


class SyntheticSettings(Settings):
    users: PositiveInt = 100_000
    """Users of the made-up log."""
    items: PositiveInt = 10_000
    """Items of the made-up log."""
    mean_history: PositiveInt = 20
    """Mean interactions a user."""
    seed: NonNegativeInt = 0
    """Seed of the made-up log."""


class DataSettings(Settings):
    source: str = ""
    """The raw log: a file, folder, glob or URI; `catalog:NAME`; or `synthetic`."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = "auto"
    """Format of the raw log; `auto` goes by the file names."""
    schemes: tuple[str, ...] = SCHEMES
    """Schemes of a URI that may be opened as `source`."""
    folder: str = "runs/data"
    """Where the prepared histories live."""
    extendable: bool = False
    """Whether the prepared folder keeps what `prepare --extend` needs: the interactions, and which files were read."""
    evict_after_days: PositiveFloat | None = None
    """An extension leaves out items that no further user has taken for so long before the newest interaction, and gives
    their rows to new ones; times that are numbers are seconds."""
    columns: ColumnNames = ColumnNames()
    features: Features = Field(default_factory=dict)
    """What users and items have beside interactions, by name, in sections `data.features.NAME`."""
    ids: Literal["auto", "integer", "string"] = "auto"
    """Type of the user and item ids; `auto` keeps that of the log (in text files: what the first lines look like)."""
    min_rating: float | None = None
    """Interactions with a lower rating are left out."""
    min_user_count: PositiveInt = 1
    """Users with fewer distinct items are left out."""
    min_item_count: PositiveInt = 1
    """Items with fewer distinct users are left out (counted once, before users are)."""
    admission_mb: PositiveFloat | None = None
    """Size of a count-min sketch that passes over items rarer than `min_item_count` before they are counted, in MiB of
    each prepare task's memory; for logs of which most ids of items come once. Never changes what is prepared."""
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
    on_bad_file: Literal["stop", "skip"] = "stop"
    """What a file of prepared training histories does that vanished, was cut off or changed: end the run, or leave its
    users out."""
    synthetic: SyntheticSettings | None = None
    """Shape of the made-up log when `source` is `synthetic`."""
