"""What a run folder remembers of its data, and which jobs ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hse_dist.config import Config
from hse_dist.data.made_with import open_prepared
from hse_dist.data.prepare import prepare
from hse_dist.errors import DataError, RunFolderError
from hse_dist.run_folder import RunFolder
from hse_dist.testing.runs import small_config


def evaluate(config: Config) -> Any:
    from hse_dist.evaluate.driver import evaluate as run

    return run(config)


def export(config: Config) -> Any:
    from hse_dist.export.writer import export as run

    return run(config)


def ease(config: Config) -> Any:
    from hse_dist.cli.commands import _evaluate_baseline as run

    return run(config, "test", "ease", None)


@pytest.fixture
def run(tmp_path: Path) -> Config:
    """A run that looks as if it had a checkpoint."""
    config = small_config(tmp_path / "run", tmp_path / "data")
    prepare(config)
    folder = RunFolder(config)
    folder.claim()
    folder.claim_data(open_prepared(config))
    (folder.checkpoints / "step-00000007").mkdir(parents=True)
    return config


def test_data_are_claimed_until_the_first_checkpoint_and_checked_from_then_on(run: Config, tmp_path: Path) -> None:
    class Other:
        fingerprint = "other"

    folder, same = RunFolder(run), open_prepared(run)
    folder.claim_data(same)
    for action in (folder.claim_data, folder.check_data):
        with pytest.raises(RunFolderError, match=r"was trained on other data.*data\.folder = '.*data'"):
            action(Other())
    (folder.checkpoints / "step-00000007").rmdir()
    folder.claim_data(Other())
    folder.check_data(Other())
    with pytest.raises(RunFolderError, match="was trained on other data"):
        folder.check_data(same)
    folder.data.unlink()
    with pytest.raises(RunFolderError, match="does not say which data"):
        folder.check_data(same)


@pytest.mark.parametrize("job", [evaluate, export, ease])
def test_a_job_refuses_other_data(run: Config, tmp_path: Path, job: Callable[[Config], Any]) -> None:
    # data.folder and data.source are free, so the run's settings do not tell
    elsewhere = small_config(tmp_path / "run", tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no prepared histories in .*elsewhere\. Prepare them first"):
        job(elsewhere)
    prepare(elsewhere)
    RunFolder(run).check_data(open_prepared(elsewhere))
    # as if a log of the same size had been prepared
    manifest = tmp_path / "elsewhere" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "', f'"sha256": "{"0" * 64}", "was": "', 1))
    with pytest.raises(RunFolderError, match=r"was trained on other data.*elsewhere"):
        job(elsewhere)


def test_ease_needs_no_run(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", tmp_path / "data")
    prepare(config)
    for _ in range(2):
        assert ease(config)["ndcg@100"] > 0


def test_another_run_has_one_name_from_wherever_it_is_named(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints/step-00000007").rmdir()
    RunFolder(small_config(tmp_path / "run", tmp_path / "data", train__teacher=str(tmp_path / "wide"))).claim()
    RunFolder(small_config(tmp_path / "run", tmp_path / "data", train__teacher="wide")).check()
    for other in ("wider", None):
        with pytest.raises(RunFolderError, match=r"train\.teacher = .* here, '.*/wide' there"):
            RunFolder(small_config(tmp_path / "run", tmp_path / "data", train__teacher=other)).check()
