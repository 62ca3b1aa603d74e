"""The dashboard shows what the code exports, all of it and nothing else."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

from hse_dist.train.series import SERIES, STEP_SECONDS

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "hse-dist.json").read_text(encoding="utf-8"))


def queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_every_series_is_shown_and_every_query_is_of_one():
    shown = {name for query in queries() for name in re.findall(r"ray_\w+", query)}
    assert shown == {series.exported for series in SERIES} | {f"ray_{STEP_SECONDS}_bucket"}


def test_every_query_is_of_the_chosen_runs_and_every_counter_is_a_rate():
    counters = [series.exported for series in SERIES if series.type in ("counter", "running")]
    for query in queries():
        assert query.count('{run=~"$run"}') == 1
        if any(name in query for name in counters) and "skipped" not in query:
            assert "rate(" in query
    (runs,) = (v for v in DASHBOARD["templating"]["list"] if v["name"] == "run")
    assert runs["query"]["query"] == "label_values(ray_hse_step, run)"


def test_panels_have_numbers_of_their_own_and_lie_beside_each_other():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        apart = [one[a] + one[s] <= other[a] or other[a] + other[s] <= one[a] for a, s in (("x", "w"), ("y", "h"))]
        assert any(apart)
