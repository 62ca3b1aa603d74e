"""What all sections share: frozen, strict, no unknown keys, meanings under the fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SCHEMES = ("file", "s3", "gs", "abfs", "hdfs")
"""Schemes of a URI that may be opened where the settings name no others."""
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, docstrings under the fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
