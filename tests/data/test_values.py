"""Lines of a feature's table become a line a value."""

from __future__ import annotations

import pyarrow as pa
import pytest

from hse_dist.data.schema import Fragment
from hse_dist.data.source import LogFile
from hse_dist.data.values import a_line_a_value


@pytest.mark.parametrize(
    ("values", "separator", "expected"),
    [
        (pa.array(["a|b", None, "", "|c"]), "|", [(0, "a"), (0, "b"), (3, "c")]),
        (pa.array(["a|b", None, "", "a"]), None, [(0, "a|b"), (3, "a")]),
        (pa.array([[1, None, 2], None, [], [3]], pa.list_(pa.int8())), None, [(0, 1), (0, 2), (3, 3)]),
        (pa.array([["a", ""], None, [], ["b"]], pa.large_list(pa.string())), "|", [(0, "a"), (3, "b")]),
        (pa.array(["x", "y", None, "x"]).dictionary_encode(), None, [(0, "x"), (1, "y"), (3, "x")]),
        (pa.array([1, None, 3, 4]), None, [(0, 1), (2, 3), (3, 4)]),
        (pa.array([12, None, 3, 4]), "|", [(0, "12"), (2, "3"), (3, "4")]),
        (pa.array([True, None, False, True]), None, [(0, True), (2, False), (3, True)]),
    ],
)
def test_a_line_has_none_one_or_several_values(values, separator, expected):
    file = LogFile("", "x.parquet", "parquet", 1)
    fragment = Fragment(file, {"user": "u", "item": "v"}, {}, (0,), 4, valued=True, separator=separator)
    batch = a_line_a_value(pa.RecordBatch.from_pydict({"v": values, "u": pa.array(range(4))}), fragment)
    assert list(zip(batch.column("u").to_pylist(), batch.column("v").to_pylist(), strict=True)) == expected
