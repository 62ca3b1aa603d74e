"""What pages say exists: commands parse, settings and files are there, and recipes run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from hse_dist.cli.parser import parse
from hse_dist.config import Config, load_config, parse_config
from hse_dist.data.prepare import prepare
from hse_dist.errors import ConfigError
from hse_dist.testing.runs import journal_of, small_config
from hse_dist.train.driver import train
from tests.documentation import PAGES, ROOT, Block, blocks, commands_of, inline, name

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(block, words) for block in BLOCKS for words in block.commands()]
PLACEHOLDER = re.compile(r"^[A-Z]+$|^section\.key=value$")
SECTIONS = tuple(Config.model_fields)
CLUSTERS = {"simulate", "submit"}
"""Jobs that need clusters: these have tests of their own."""
WRITTEN = {"mine.toml"}
"""Configurations that a page tells to write."""


def there(path: str) -> Path:
    """The file of this checkout that a command names; images have it under /app."""
    return ROOT / path.removeprefix("/app/")


@pytest.mark.parametrize(
    ("block", "words"), COMMANDS, ids=[f"{name(block.page)}: {' '.join(words)}"[:90] for block, words in COMMANDS]
)
def test_a_command_parses_and_names_configurations_and_settings_that_exist(block: Block, words: list[str]) -> None:
    parsed = parse(words)
    config = getattr(parsed, "config", None)
    if config is None or PLACEHOLDER.match(config):
        return
    overrides = [text for text in parsed.overrides if not PLACEHOLDER.match(text)]
    if config in WRITTEN:
        (text,) = (block.text for block in BLOCKS if block.kind == "toml" and block.text.startswith(f"# {config}"))
        raw = tomllib.loads(text)
        parse_config(raw, config)
    else:
        load_config(there(config), overrides)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_names_exists(page: Path) -> None:
    for text in inline(page):
        if "…" not in text and "[" not in text:
            for words in commands_of(text):
                if len(words) > 1 and words != ["benchmark", "KIND"]:
                    parse(words)
    wrong = [path for path in settings_of(page) if not is_setting(path)]
    assert wrong == []
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    if page != ROOT / "README.md" and page.parent.name != ".github":
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        assert f"({name(page)}" in readme or f"({name(page.parent)})" in readme, "not linked from the README"


def settings_of(page: Path) -> set[str]:
    """Dotted paths within sentences and in overrides, commented ones too, that begin with a section."""
    sections = "|".join(SECTIONS)
    said = " ".join(inline(page)) + " " + " ".join(re.findall(rf"(?:{sections})\.[a-z0-9_.]+(?==)", page.read_text()))
    found = re.findall(rf"(?<![\w./-])(?:{sections})(?:\.[a-z0-9_]+)+(?![\w/(.-])", said)
    return {path for path in found if not path.endswith((".py", ".md", ".json", ".jsonl", ".toml"))}


def is_setting(path: str) -> bool:
    model: Any = Config
    for part in path.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields):
            return False
        model = model.model_fields[part].annotation
        if not isinstance(model, type):  # `… | None`
            model = next((one for one in getattr(model, "__args__", ()) if isinstance(one, type)), None)
    return True


def test_configurations_in_pages_are_right() -> None:
    texts = [block for block in BLOCKS if block.kind == "toml" or block.text.startswith("[run]\n")]
    assert len(texts) >= 2
    for block in texts:
        parse_config(tomllib.loads(block.text), name(block.page))


def test_the_tour_has_every_package_in_the_order_of_their_imports() -> None:
    from tests.test_layout import LEVELS

    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    packages = {path.parent.name for path in (ROOT / "hse_dist").glob("*/__init__.py")}
    assert sorted(told) == sorted(packages)
    levels = [LEVELS[package] for package in told if package != "testing"]
    assert levels == sorted(levels)
    for module in re.findall(r"`(\w+\.py)`", text):
        assert (ROOT / "hse_dist" / module).exists() or (ROOT / "tests" / module).exists(), module


def example() -> Block:
    (block,) = (block for block in BLOCKS if block.kind == "python" and "def share_of_row" in block.text)
    return block


def test_the_policy_of_the_example_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_policies.py").write_text(example().text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = {"sparsity__drop__kind": "own", "sparsity__drop__function": "my_policies:share_of_row"}
    prepare(small_config(tmp_path / "run", tmp_path / "data"))
    runs = {}
    for kind, changes in {"own": own, "magnitude": {}}.items():
        config = small_config(tmp_path / kind, tmp_path / "data", train__epochs=1, model__row_norm="free", **changes)
        train(config)
        runs[kind] = journal_of(config)
        assert {entry["policy"]["drop"] for entry in runs[kind][1:]} == {kind}
    assert runs["own"][1]["thresholds"] != runs["magnitude"][1]["thresholds"]

    from hse_dist.sparsity.own import Entries, own_score

    rows, values = np.array([4, 4, 9]), np.array([[3.0], [1.0], [0.5]], np.float32)
    entries = Entries(rows, np.array([1, 2, 1]), values, np.ones(3, np.float32))
    assert own_score("my_policies:share_of_row")(entries) == pytest.approx([0.9, 0.1, 1.0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module:score", r"no_such_module cannot be imported.*PYTHONPATH.*sparsity\.drop\.function"),
        ("hse_dist.errors:score", r"no function score in hse_dist\.errors"),
        ("numpy:asarray", r"gave object \[\] for 2 entries"),
    ],
)
def test_a_function_that_is_no_drop_score_is_one_message(function: str, message: str) -> None:
    from hse_dist.sparsity.own import Entries, own_score

    entries = Entries(np.arange(2), np.arange(2), np.ones((2, 1), np.float32), np.ones(2, np.float32))
    with pytest.raises(ConfigError, match=message):
        own_score(function)(entries)


SYNTHETIC = """
[data.synthetic]
users = 600
items = 300
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where recipes are run: small data in the place of MovieLens and of the reader's own log."""
    (tmp_path / "configs").mkdir()
    for file in ("ml-100k.toml", "ml-100k-64-bytes.toml"):
        text = (ROOT / "configs" / file).read_text(encoding="utf-8")
        text = text.replace('"catalog:ml-100k"', '"synthetic"').replace('rating = "rating"\n', "")
        text = text.replace('timestamp = "timestamp"\n', "") + SYNTHETIC + "[cluster]\nworkers = 0\n"
        (tmp_path / "configs" / file).write_text(text, encoding="utf-8")
    rng = np.random.default_rng(0)
    for day in range(2):
        (tmp_path / "events" / f"day={day}").mkdir(parents=True)
        count = 4000
        columns = {"customer": rng.integers(0, 300, count), "sku": rng.integers(0, 150, count).astype(str)}
        columns |= {"time": rng.integers(0, 10**9, count), "stars": rng.integers(1, 6, count).astype(float)}
        pq.write_table(pa.table(columns), tmp_path / "events" / f"day={day}" / "part.parquet")
    pq.write_table(pa.table({"user": [1, 2], "items": [[50, 181], [258]]}), tmp_path / "histories.parquet")
    (tmp_path / "my_policies.py").write_text(example().text, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_recipes_run(place: Path) -> None:
    """In the order of the pages, as each may use the runs of those before it; the README comes first."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{place}"}
    count = 0
    for block in BLOCKS:
        if block.reason:
            continue
        if block.kind == "toml" and block.text.startswith("# mine.toml"):
            (place / "mine.toml").write_text(block.text + "\n[cluster]\nworkers = 0\n", encoding="utf-8")
        code = block.kind == "python" or block.text.startswith("from hse_dist")
        asked = [words for words in block.commands() if words[0] not in CLUSTERS]
        commands = [["-c", block.text]] if code else [["-m", "hse_dist.cli", *words] for words in asked]
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", *command],
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            # what of a machine does not work is no fault of the page
            allowed = (0, 1) if "doctor" in command else (0,)
            assert done.returncode in allowed, f"{name(block.page)}: {command}\n{done.stdout}\n{done.stderr}"
            if not code:
                json.loads(done.stdout.splitlines()[-1])
            count += 1
    assert count > 20
