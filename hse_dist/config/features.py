"""Settings of features: what users and items have beside their interactions, and the tables of their rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from hse_dist.config.base import Settings


def _name(value: str) -> str:
    if not (value.isascii() and value.isidentifier() and value == value.lower() and len(value) <= 64):
        raise ValueError("Input should be a name of small letters, digits and _ that begins with a letter")
    return value


# features are named in files, columns and on the command line
FeatureName = Annotated[str, AfterValidator(_name)]


class FeatureSettings(Settings):
    of: Literal["user", "item"]
    """What has the feature's values: each user, or each item."""
    column: str | None = None
    """Column with the value; without it the user's id itself is the value, and each user has a row."""
    source: str = ""
    """A table with a line for each value that a user or an item has: a file, folder, glob or URI, or `catalog:NAME`;
    without it the log itself."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = "auto"
    """Format of `source`; `auto` goes by the file names."""
    key: str | None = None
    """Column of `source` with the user or item id; without it that of the log's name."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between the values where one text has several of them; lists are read as they are."""
    min_count: PositiveInt = 1
    """Values that fewer users or items have are left out."""


class FeatureTableSettings(Settings):
    live: PositiveInt = 8
    """Mean live entries a row at the start, which go into the one budget that all tables share."""
    start: Literal["history", "random"] = "history"
    """First live entries of a row: the strongest columns of the items beside which its value stands, or any."""
    weight: NonNegativeFloat | None = None
    """First weight of the feature's rows, beside that of 1 of an item's row; it is trained. Without it 1 for features
    of users, and 0.01 for those of items: a history adds it up over its items."""


Features = dict[FeatureName, FeatureSettings]
FeatureTables = dict[FeatureName, FeatureTableSettings]
