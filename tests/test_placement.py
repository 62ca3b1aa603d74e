"""Which node runs what, in words."""

from __future__ import annotations

from hse_dist.placement import by_node, describe, read_placement, write_placement


def test_nodes_are_listed_with_what_runs_on_them(tmp_path):
    path = tmp_path / "placement.json"
    assert read_placement(path) is None
    written = write_placement(path, [("10.0.0.2", 7), ("10.0.0.1", 8), ("10.0.0.2", 9)], ("10.0.0.3", 5))
    assert read_placement(path) == written
    assert by_node(written) == {
        "10.0.0.2": ["rank 0", "rank 2"],
        "10.0.0.1": ["rank 1"],
        "10.0.0.3": ["SparsityServer"],
    }
    assert describe(written) == "10.0.0.2: rank 0, rank 2; 10.0.0.1: rank 1; 10.0.0.3: SparsityServer"
