"""Bad and hostile input for tests: how it is made, and what may come of it.

In: a good file's bytes, JSON or columns. Out: hypothesis strategies of what may have become of them, by accident or on
purpose; and `survives`, which holds an action to the one promise: it succeeds, or it raises an `HseError` that says why,
soon, in little memory, and leaves nothing half-written.

`few_and_many` makes two tests of one property: one of the ordinary suite, and one marked slow with many more cases.
HSE_FUZZ_SEED picks other cases than those of seed 0.
"""

from __future__ import annotations

import copy
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

from hse_dist.errors import HseError

SEED = int(os.environ.get("HSE_FUZZ_SEED", "0"))
SECONDS = 20
"""After which an action hangs."""
BYTES = 3 << 30
"""Address space that an action may take; memory that is only promised counts, so that a lie in a header is seen."""
LEFTOVERS = (".tmp", ".old")
"""Endings of what `hse_dist.files` makes for a moment."""

NAMES = ("", ".", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, "file:///etc/passwd", "🙂")
NUMBERS = (0, -1, 1, 7, 2**31, 2**32 - 1, 2**60, 2**63, 2**70, 10**400, -(2**63) - 1, 0.5, 1e308)
NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"))


class Hang(BaseException):
    """No `Exception`: nobody who catches those must swallow it."""


def few_and_many(few: int, many: int) -> Callable[[Callable[..., None]], tuple[Callable[..., None], Callable[..., None]]]:
    """Of a property with `given`: the test of the ordinary suite, and the slow one."""

    def both(prop: Callable[..., None]) -> tuple[Callable[..., None], Callable[..., None]]:
        return _test(prop, few), pytest.mark.slow(pytest.mark.timeout(1800)(_test(prop, many)))

    return both


def _test(prop: Callable[..., None], cases: int) -> Callable[..., None]:
    # a copy: settings are written on the function
    clone: Any = copy.copy(prop) if not callable(getattr(prop, "hypothesis", None)) else prop
    del clone
    from hypothesis import given

    inner, kinds = prop.hypothesis.inner_test, prop.hypothesis.given_kwargs  # type: ignore[attr-defined]
    return settings(max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck))(
        seed(SEED)(given(**kinds)(inner))
    )
