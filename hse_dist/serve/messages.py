"""What goes over the wire: questions, answers and problems, as pydantic models.

In: the limits of a server. Out: the models from which FastAPI checks requests and writes the OpenAPI schema, limits
included. Ids are whole numbers or texts, as those of an export are; what the export does not know is no mistake.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    create_model,
)

from hse_dist.serve.options import Limits

Id = StrictInt | StrictStr
Value = StrictInt | StrictStr | StrictBool


class Reason(BaseModel):
    """A column that an item shares with the history or the user's features, and what it adds to the item's score."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    column: int
    contribution: float
    items: list[Id]
    """Items of the history that are live in this column, those that add most first, so many as the server names; none
    where it is features' alone."""


class Answer(BaseModel):
    """Items, best first."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    items: list[Id]
    """Raw ids."""
    scores: list[float]
    """One for each item."""
    unknown: list[Id]
    """Ids of the history that the export does not know; they change nothing."""
    reasons: list[list[Reason]] | None
    """Of each item, if they were asked for: their contributions add up to its score."""
    unknown_features: dict[str, list[Value]]
    """Values of the user that the export does not know, by feature; they change nothing."""


class Health(BaseModel):
    """The replica answers."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    status: str = "ok"
    version: str
    """Of the export that it answers from."""
    items: int
    """Of that export."""
    features: list[str]
    """Of users, that a question may name."""


class Reloaded(BaseModel):
    """What is answered from now."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    version: str
    changed: bool
    """Whether this is another export than before."""


class Problem(BaseModel):
    """A request that was not answered."""

    detail: str


def _whole(value: Any) -> Any:
    """1.0 is a whole number to JSON's schemas, and to programs that know no other numbers than floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_ids(value: Any) -> Any:
    return [_whole(one) for one in value] if isinstance(value, list) else value


def _texts(ids: list[int | str]) -> list[int | str]:
    """Half of a surrogate pair, which JSON can spell, is no text that an answer could repeat."""
    for one in ids:
        if isinstance(one, str) and not one.isascii():
            one.encode()  # raises a ValueError
    return ids


def _value(value: Any) -> Any:
    """One value of a feature, or several."""
    return _whole_ids(value) if isinstance(value, list) else _whole(value)


def _text(value: Any) -> Any:
    _texts(value if isinstance(value, list) else [value])
    return value


def question_model(limits: Limits) -> Any:
    """The model of a question under these limits."""

    def ids(most: int) -> Any:
        # checks of a whole list: a call for each of ten thousand ids would take longer than the answer
        return Annotated[list[Id], Field(max_length=most), BeforeValidator(_whole_ids), AfterValidator(_texts)]

    filters = ids(limits.max_filter) | None
    several = Annotated[list[Value], Field(max_length=limits.max_values)]
    values = Annotated[Value | several, BeforeValidator(_value), AfterValidator(_text)]
    known = Annotated[dict[str, values], Field(max_length=limits.max_features)] | None
    known_text = "What else is known of the user: by feature, a raw value or several."
    fields: dict[str, Any] = {
        "history": (ids(limits.max_history), Field(description="Raw ids of the items that a user has.")),
        "k": (
            Annotated[StrictInt, Field(ge=1, le=limits.max_k), BeforeValidator(_whole)],
            Field(default=min(10, limits.max_k, limits.max_explained), description="Items wanted at most."),
        ),
        "features": (known, Field(default=None, description=known_text)),
        "seen": (StrictBool, Field(default=False, description="Whether items of the history may be answered.")),
        "allow": (filters, Field(default=None, description="The only items that may be answered.")),
        "deny": (filters, Field(default=None, description="Items that may not be answered.")),
        "explain": (
            StrictBool,
            Field(default=False, description=f"Whether to say what made each score; k ≤ {limits.max_explained} then."),
        ),
    }
    explained: dict[str, Any] = {
        "if": {"properties": {"explain": {"const": True}}, "required": ["explain"]},
        "then": {"properties": {"k": {"maximum": limits.max_explained}}},
    }
    settings = ConfigDict(extra="forbid", json_schema_extra=explained)
    return create_model(
        "Question", __config__=settings, __doc__="A history, and what else is known of the user.", **fields
    )
