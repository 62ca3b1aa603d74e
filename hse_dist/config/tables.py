"""Settings of the tables: their shape, how they are spread, and what goes over the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from hse_dist.config.base import Settings
from hse_dist.config.features import FeatureTables

MAX_DIMS = 2**24 - 1
"""Columns are kept as float32 integers, exact below 2^24; one code is reserved for free slots."""


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
    spare_columns: NonNegativeInt = 0
    """Columns beyond one a row where `dims` is `items`: each later new item gets one for itself, until none is left."""
    live: Annotated[int, Field(ge=1, le=4096)] = 32
    """Mean live entries a row: the budget is live × rows."""
    chunk_width: Literal[8, 16, 32] = 16
    """Slots a chunk; a row is a run of chunks."""
    sharding: Sharding = "row_wise"
    """How TorchRec spreads the table over the ranks."""
    kernel: Literal["fused", "fused_uvm", "fused_uvm_caching"] = "fused"
    """Where a GPU's shard lies: in its own memory; in the host's, read from there; there, with a cache on the GPU."""
    cache_load_factor: Annotated[float, Field(gt=0, le=1)] = 0.2
    """`fused_uvm_caching`: share of the shard that the cache has room for."""
    slack: NonNegativeFloat = 0.0
    """Slots beyond those of the start, as a share of it: room for rows of a random start to grow at others' cost."""
    capacity_power: NonNegativeFloat = 0.0
    """Random start: row lengths follow count^power (0: all the same)."""
    wire: WireSettings = WireSettings()
    """What chunks look like between ranks; one rank alone sends nothing, and loses nothing."""


class TablesSettings(Settings):
    item: TableSettings = TableSettings()
    features: FeatureTables = Field(default_factory=dict)
    """Features of the data that have a table, by name, in sections `tables.features.NAME`: their rows have the columns
    of item rows, and share their budget."""
