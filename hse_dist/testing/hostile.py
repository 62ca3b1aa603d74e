"""Bad and hostile input for tests: how it is made, and what may come of it.

In: a good file's bytes, JSON or columns. Out: hypothesis strategies of what may have become of them, by accident or on
purpose; and `survives`, which holds an action to the one promise: it succeeds, or it raises an `HseError` that names
the file and the reason, soon, in little memory, and leaves nothing half-written.

`few_and_many` makes two tests of one property: one of the ordinary suite, and one marked slow with many more cases.
HSE_FUZZ_SEED picks other cases than those of seed 0.
"""

from __future__ import annotations

import copy
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hse_dist.errors import HseError

SEED = int(os.environ.get("HSE_FUZZ_SEED", "0"))
SECONDS = 20.0
"""After which an action hangs."""
BYTES = 3 << 30
"""Address space that an action may take; memory that is only promised counts, so that a lie in a header is seen."""
LEFTOVERS = (".tmp", ".old")
"""Endings of what `hse_dist.files` makes for a moment."""

NAMES = ("", ".", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, "file:///etc/passwd", "🙂")
NUMBERS = (0, -1, 1, 7, 2**31, 2**32 - 1, 2**60, 2**63, 2**70, 10**400, -(2**63) - 1, 0.5, 1e308)
NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"))
KINDS = (pa.string(), pa.binary(), pa.float64(), pa.float16(), pa.int8(), pa.uint64(), pa.bool_(), pa.date32())

Test = Callable[..., None]


class Hang(BaseException):
    """Not an `Exception`, so that nobody who catches those swallows it."""


def few_and_many(few: int, many: int, **kinds: st.SearchStrategy[Any]) -> Callable[[Test], tuple[Test, Test]]:
    """Of a property, the test of the ordinary suite and the slow one, with so many cases; `kinds` as of `given`."""

    def test(prop: Test, cases: int) -> Test:
        limits = settings(
            max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
        )
        made: Test = limits(seed(SEED)(given(**kinds)(prop)))
        return made

    return lambda prop: (test(prop, few), pytest.mark.slow(pytest.mark.timeout(3600)(test(prop, many))))


def survives(action: Callable[[], object], *named: str | Path, folder: Path | None = None) -> HseError | None:
    """Run `action`; None where it succeeds, or the `HseError` that it raised. Any other end is an error here.

    Args:
        named: of these the message must contain at least one, if there are any.
        folder: below it nothing temporary may be left.
    """
    said = None
    with _limits():
        try:
            action()
        except HseError as error:
            said = error
    if said is not None:
        text = str(said)
        assert text.strip() and (not named or any(str(name) in text for name in named)), f"it says only {text!r}"
    if folder is not None:
        left = [str(path) for path in folder.rglob("*") if path.name.endswith(LEFTOVERS)]
        assert not left, f"left behind: {left}"
    return said


@contextmanager
def _limits() -> Iterator[None]:
    """An end to time and memory, beside the time limit that the test has."""

    def stop(*_: object) -> None:
        raise Hang(f"no end after {SECONDS:.0f} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    began, handler = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.1))


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """What disks, copies and editors make of a file: cut off, flipped, swapped, repeated, zeroed, or something else."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        at, to = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.sampled_from(("cut", "flip", "byte", "swap", "repeat", "zero", "drop", "insert", "other"))):
            case "cut":
                del data[to:]
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "swap":
                data[at:] = data[to:] + data[at:to]
            case "repeat":
                data[to:to] = data[at:to] * draw(st.integers(1, 3))
            case "zero":
                data[at:to] = bytes(to - at)
            case "drop":
                del data[at:to]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=12))
            case "other":
                data = bytearray(draw(st.binary(max_size=200)))
    return bytes(data)


def values() -> st.SearchStrategy[Any]:
    """JSON values that are not what anybody waits for; some of them cannot be told in strict JSON."""
    plain = st.sampled_from((None, True, False, *NUMBERS, *NOT_NUMBERS, *NAMES))
    return st.one_of(
        plain, st.lists(plain, max_size=3), st.dictionaries(st.sampled_from(NAMES), plain, max_size=2), deep()
    )


def deep() -> st.SearchStrategy[Any]:
    """A list in a list in a list, twenty times over; deeper ones are texts, as Python cannot dump them."""

    def nest(_: object) -> Any:
        found: Any = []
        for _ in range(20):
            found = [found]
        return found

    return st.none().map(nest)


@st.composite
def hostile_json(draw: st.DrawFn, good: Any) -> Any:
    """`good` with one to three of its values replaced, removed or taken from elsewhere in it."""
    tree = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            return draw(values())
        parent, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("value", "value", "value", "remove", "other", "rename", "whole"))):
            case "value":
                parent[key] = draw(values())
            case "remove":
                del parent[key]
            case "other":
                other, its = draw(st.sampled_from(places))
                parent[key] = copy.deepcopy(other[its])
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(NAMES))] = parent.pop(key)
            case "whole":
                if draw(st.integers(0, 9)) == 0:
                    return draw(values())
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(value)


@st.composite
def hostile_table(draw: st.DrawFn, good: pa.Table) -> pa.Table:
    """`good` with columns dropped, renamed, doubled or of another type, with nulls, NaN and numbers out of range."""
    columns = [(name, good[name].combine_chunks()) for name in good.column_names]
    for _ in range(draw(st.integers(1, 2))):
        if not columns:
            break
        at = draw(st.integers(0, len(columns) - 1))
        name, column = columns[at]
        match draw(st.sampled_from(("drop", "rename", "double", "type", "values", "values", "nulls", "rows", "lists"))):
            case "drop":
                del columns[at]
            case "rename":
                columns[at] = (draw(st.sampled_from(("", "item", "rows", "user_id", "\ufffd"))), column)
            case "double":
                columns.insert(at, (name, column))
            case "type":
                columns[at] = (name, _retyped(column, draw(st.sampled_from(KINDS))))
            case "values":
                columns[at] = (name, draw(_changed(column)))
            case "nulls":
                kept = [None if draw(st.booleans()) else value for value in column.to_pylist()[:6]]
                columns[at] = (name, pa.concat_arrays([pa.array(kept, column.type), column[len(kept) :]]))
            case "rows":
                count = draw(st.integers(0, len(column)))
                columns = [(one, array[:count]) for one, array in columns]
            case "lists":
                columns[at] = (name, pa.array([[value] for value in column.to_pylist()], pa.list_(column.type)))
    return pa.Table.from_arrays([array for _, array in columns], names=[name for name, _ in columns])


def _retyped(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """As another type; inside of lists where there are some."""
    if pa.types.is_list(column.type):
        return pa.ListArray.from_arrays(column.offsets, _retyped(column.values, kind))
    try:
        return column.cast(kind, safe=False)
    except pa.ArrowException:
        return pa.nulls(len(column), kind)


@st.composite
def _changed(draw: st.DrawFn, column: pa.Array) -> pa.Array:
    """With some values that the type holds and nobody waits for."""
    if pa.types.is_list(column.type):
        values = draw(_changed(column.values))
        return pa.ListArray.from_arrays(column.offsets, values)
    kind, found = column.type, column.to_pylist()
    if pa.types.is_integer(kind):
        bits, signed = kind.bit_width, pa.types.is_signed_integer(kind)
        odd: tuple[Any, ...] = (
            0,
            1,
            2 ** (bits - 1) - 1,
            2 ** (bits - signed) - 1,
            -(2 ** (bits - 1)) if signed else 3,
        )
    elif pa.types.is_floating(kind):
        odd = (0.0, -1.0, *NOT_NUMBERS, 1e30 if kind.bit_width > 16 else 6e4)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        odd = ("", "\0", "x" * 100)
    else:
        return column
    for _ in range(draw(st.integers(1, 3))):
        if found:
            found[draw(st.integers(0, len(found) - 1))] = draw(st.sampled_from(odd))
    return pa.array(found, kind)


@st.composite
def bomb(draw: st.DrawFn, good: bytes) -> bytes:
    """A Parquet file whose footer claims up to 2^62 rows, values or bytes somewhere."""
    size = int.from_bytes(good[-8:-4], "little")
    footer = bytearray(good[-8 - size : -8])
    # numbers are zigzag varints there, so a positive number of one byte is even; that of other things is, too, perhaps
    places = [at for at, byte in enumerate(footer) if 2 <= byte < 128 and byte % 2 == 0]
    at, power = draw(st.sampled_from(places)), draw(st.sampled_from((30, 40, 60, 62)))
    footer[at : at + 1] = _varint(2 ** (power + 1))
    return good[: -8 - size] + bytes(footer) + len(footer).to_bytes(4, "little") + good[-4:]


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 128:
        found.append(number % 128 + 128)
        number //= 128
    return bytes([*found, number])
