"""Sizes and rates as people write them: `1e9`, `80GB`, `64GiB`, `100Gb/s`.

In: a text. Out: a number of things, bytes, or bytes a second. A small b is a bit, a large B a byte; K, M, G, T are
powers of 1000, Ki, Mi, Gi, Ti of 1024.
"""

from __future__ import annotations

import re
from math import inf

POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_NUMBER = r"(\d+(?:\.\d+)?(?:e\+?\d+)?)"


def count(text: str) -> int:
    """A whole number of at least 1, perhaps with an exponent: `1e9`.

    Raises:
        ValueError: it is none.
    """
    number = float(text) if re.fullmatch(_NUMBER, text) else 0.0
    if not (1 <= number < inf) or number != int(number):
        raise ValueError(f"{text!r} is not a positive whole number such as 1e9")
    return int(text) if text.isdecimal() else int(number)


def size(text: str) -> int:
    """Bytes: `80GB`, `512MiB`.

    Raises:
        ValueError: it is no size.
    """
    return round(_read(text, "", "a size such as 80GB"))


def rate(text: str) -> float:
    """Bytes a second: `100Gb/s`, `2GB/s`.

    Raises:
        ValueError: it is no rate.
    """
    return _read(text, "/s", "a rate such as 100Gb/s or 2GB/s")


def _read(text: str, end: str, what: str) -> float:
    found = re.fullmatch(rf"{_NUMBER}\s*([KkMGTP]?)(i?)([Bb]){end}", text.strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is not {what}")
    number, power, binary, unit = float(found[1]), found[2].lower(), found[3], found[4]
    return number * (1024 if binary else 1000) ** POWERS[power] / (8 if unit == "b" else 1)


def as_bytes(number: float) -> str:
    """A size for people: 1.23 GB."""
    if abs(number) < 1000:
        return f"{number:.0f} B"
    for name in ("kB", "MB", "GB"):
        number /= 1000
        if abs(number) < 1000:
            return f"{number:.3g} {name}"
    return f"{number / 1000:.3g} TB" if number < 1e6 else f"{number / 1000:,.0f} TB"
