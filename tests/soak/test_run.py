"""Real runs on a local cluster that real faults disturb: they end as one that nobody disturbed."""

from __future__ import annotations

from random import Random

import pytest

from hse_dist.soak.run import soak
from hse_dist.soak.schedule import KINDS
from hse_dist.soak.settings import SETTINGS

SHORT = SETTINGS.replace("epochs = 28", "epochs = 12").replace("users = 4000", "users = 2000")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_fault_of_each_kind_leaves_no_trace(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("hse_dist.soak.settings.SETTINGS", SHORT)
    result = soak(10.0, 1, tmp_path / "soak", iter([(kind, Random(1))]))
    assert result["equal"] and result["differences"] == []
    assert result["faults"] == {kind.name: 1} and result["recoveries"] == 1
