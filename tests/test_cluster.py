"""Where work runs: devices that are not there, and what happens to the errors of Ray Train's workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hse_dist.benchmark.step import benchmark_step
from hse_dist.cluster import connect, run_workers
from hse_dist.errors import DataError, NumericError, ResourceError, TrainingError
from hse_dist.ranks import Ranks
from hse_dist.train.worker import reporter


def test_cuda_where_there_is_none_is_refused_by_name(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = make_config(cluster={"device": "cuda"})
    refused = pytest.raises(ResourceError, match=r"setting cluster\.device = 'cuda'")
    with refused, connect(config.cluster):
        pass
    with refused:
        run_workers(lambda ranks, arguments: None, {}, config, "job")
    with refused:
        benchmark_step(device="cuda")


@pytest.mark.ray
def test_a_run_in_this_process_reports_nothing_to_ray(shared_ray):
    reporter(None, False)({"step": 1}, "a checkpoint")


def run_on_ray(make_config: Any, work: Any, failures: int) -> tuple[Any, Path]:
    config = make_config(cluster={"workers": 1, "max_failures": failures})
    folder = Path(config.run.folder)
    folder.mkdir()
    # of an earlier job that was killed
    (folder / ".job.error.json").write_text(json.dumps({"kind": "DataError", "what": "Old."}))
    try:
        return run_workers(work, {"folder": folder}, config, "job"), folder
    except Exception as error:
        return error, folder


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_that_would_come_again_does_not_run_the_work_again(shared_ray, make_config):
    def work(ranks: Ranks, arguments: dict[str, Any]) -> None:
        with (arguments["folder"] / "calls").open("a") as calls:
            calls.write("x")
        raise NumericError("Row 3 is NaN.", cause="Too fast.", setting="train.learning_rate", value=Path("9"))

    error, folder = run_on_ray(make_config, work, failures=1)
    assert type(error) is NumericError
    assert str(error) == "Row 3 is NaN. Too fast. (setting train.learning_rate = '9')"
    assert (folder / "calls").read_text() == "x"
    assert sorted(path.name for path in folder.iterdir()) == ["calls", "ray"]


@pytest.mark.slow
@pytest.mark.ray
def test_an_error_that_may_pass_is_tried_again(shared_ray, make_config):
    def work(ranks: Ranks, arguments: dict[str, Any]) -> Any:
        with (arguments["folder"] / "calls").open("a") as calls:
            calls.write("x")
        if len((arguments["folder"] / "calls").read_text()) < 2:
            raise TrainingError("A node was lost.")
        return {"size": ranks.size}

    answer, folder = run_on_ray(make_config, work, failures=1)
    assert answer == {"size": 1} and (folder / "calls").read_text() == "xx"
    assert sorted(path.name for path in folder.iterdir()) == ["calls", "ray"]


def test_in_this_process_an_error_comes_as_it_was_raised(make_config):
    def work(ranks: Ranks, arguments: dict[str, Any]) -> None:
        raise DataError("Bad.", value=ranks.size)

    with pytest.raises(DataError) as caught:
        run_workers(work, {}, make_config(), "job")
    assert caught.value.value == 1
