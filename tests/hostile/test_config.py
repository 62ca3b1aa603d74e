"""Any text as a configuration, any words as overrides: a `Config`, or one `ConfigError`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from hse_dist.config import Config, load_config
from hse_dist.run_folder import flat
from hse_dist.testing.hostile import NAMES, damaged, few_and_many, survives

GOOD = (Path(__file__).parents[2] / "configs" / "ml-100k.toml").read_bytes()
KEYS = sorted(flat(Config().model_dump(mode="json")))
VALUES = (
    "1", "-1", "1e400", "nan", "none", "true", "[1, 2]", "[]", "{a = 1}", '"x"', "'", "9" * 5000, "0x" + "f" * 5000,
    "[" * 3000, "{a=" * 500, "1979-05-27", "07:32:00", "\ud800", "\0", "a\nb = 1", "1\n[run]", *NAMES,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


def load(folder: Path, content: bytes, *words: str) -> None:
    path = folder / "c.toml"
    path.write_bytes(content)
    survives(lambda: load_config(path, words), path)


@few_and_many(100, 1500, content=damaged(GOOD))
def _files(folder: Path, content: bytes) -> None:
    load(folder, content)


keys = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS).map(lambda key: key + ".x"), st.text(max_size=8))
words = st.one_of(
    st.builds("{}={}".format, keys, st.one_of(st.sampled_from(VALUES), st.text(max_size=8), st.floats().map(str))),
    st.text(max_size=12),
)


@few_and_many(100, 1500, words=st.lists(words, min_size=1, max_size=3))
def _overrides(folder: Path, words: list[str]) -> None:
    load(folder, GOOD, *words)


test_files, test_many_files = _files
test_overrides, test_many_overrides = _overrides
