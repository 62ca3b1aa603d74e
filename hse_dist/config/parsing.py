"""From text to checked settings, with all mistakes at once.

In: a nested dictionary, overrides as `section.key=value` and the pydantic model that they must fit. Out: the model's
object, or one line a mistake, each with the dotted path that the user wrote.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

SHOWN = 200
"""Characters of a wrong value that a message repeats."""
Model = TypeVar("Model", bound=BaseModel)


def parse_toml(text: str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ValueError: it is not TOML, or has numbers or depths that nobody means.
    """
    try:
        raw = tomllib.loads(text)
        _check_numbers(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return raw


def _check_numbers(value: Any) -> None:
    """TOML's own limit, which tomllib does not have; what is beyond may be too long to be said again."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("it has a whole number of more than 64 bits")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(part)


def override(raw: dict[str, Any], text: str) -> str:
    """Apply `section.key=value` to `raw`; an empty string, or what is wrong with it."""
    key, separator, value = text.partition("=")
    keys = key.strip().split(".")
    if not separator or not all(keys):
        return f"{text!r}: an override has the form section.key=value"
    table = raw
    for part in keys[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return f"{key.strip()}: {part} is a value, not a section"
    table[keys[-1]] = _toml_value(value.strip())
    return ""


def _toml_value(text: str) -> Any:
    """A TOML value, or the text itself where quotes were left out; `none` removes an optional setting."""
    if text == "none":
        return None
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def validate(model: type[Model], raw: dict[str, Any]) -> tuple[Model | None, list[str]]:
    """The model's object, or all that is wrong with `raw`.

    The model looks for contradictions only where every setting is fine alone. So settings that are not are taken out
    for a second look, and what that finds counts unless it speaks of one of them.
    """
    # JSON mode keeps `strict` for numbers and strings and still accepts nested tables; a TOML date has no form in JSON
    # and becomes a table, which no setting takes
    text = json.dumps(raw, default=lambda value: {"date": str(value)})
    try:
        return model.model_validate_json(text), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    alone = [detail for detail in details if detail["loc"]]
    if not alone:
        return None, [line for detail in details for line in _message(detail).split("\n")]
    rest, wrong = json.loads(text), set()
    for detail in alone:
        # what lacks a setting goes as a whole: without that setting it would be as wrong as before
        path = detail["loc"][:-1] if detail["type"] == "missing" else _path(detail)
        _remove(rest, path)
        if detail["type"] != "extra_forbidden":
            wrong.add(".".join(map(str, path)))
    together = validate(model, rest)[1] if rest != json.loads(text) else []
    return None, [_describe(detail) + _wanted(model, text, detail) for detail in alone] + [
        problem for problem in together if not any(re.search(rf"{re.escape(path)}(?!\w)", problem) for path in wrong)
    ]


def _path(detail: Any) -> tuple[int | str, ...]:
    """Where the mistake is; of a name that is none, the name."""
    path: tuple[int | str, ...] = detail["loc"]
    return path[:-1] if path[-1:] == ("[key]",) else path


def _remove(table: dict[Any, Any], path: tuple[int | str, ...]) -> None:
    for key in path[:-1]:
        table = table.get(key, {}) if isinstance(table, dict) else table[key]
    if not isinstance(table, dict) or path[-1] in table:
        del table[path[-1]]


def _wanted(model: type[Model], text: str, detail: Any) -> str:
    """What a setting that is missing may be: the words for a value in its place that nothing takes."""
    if detail["type"] != "missing":
        return ""
    filled, path = json.loads(text), detail["loc"]
    table = filled
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = None
    try:
        model.model_validate_json(json.dumps(filled))
    except ValidationError as error:
        words = [_message(other) for other in error.errors(include_url=False) if other["loc"] == path]
        return f". {words[0]}" if words else ""
    return ""


def _describe(detail: Any) -> str:
    path = ".".join(map(str, _path(detail)))
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown setting"
    if detail["type"] == "missing":
        return f"{path}: {_message(detail)}"
    given = json.dumps(detail["input"])
    return f"{path}: {_message(detail)} (given: {given if len(given) <= SHOWN else given[:SHOWN] + '…'})"


def _message(detail: Any) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")
