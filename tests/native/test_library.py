"""A library that was built from other sources is not used."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hse_dist.native import library as native

SOURCES = Path(native.__file__).parent


def signatures() -> list[str]:
    """Of all kernels, without what a formatter may change."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.cpp")))
    return [re.sub(r"\s+", " ", found) for found in re.findall(r"int64_t (hse_\w+\([^)]*\)) \{", text)]


def test_the_version_follows_from_the_signatures() -> None:
    digest = int(hashlib.sha256("\n".join(signatures()).encode()).hexdigest()[:8], 16)
    built = re.search(r"hse_version\(\) \{ return (0x\w+); \}", (SOURCES / "rows.cpp").read_text(encoding="utf-8"))
    assert built is not None and len(signatures()) > 15
    assert hex(native.VERSION) == hex(digest) == hex(int(built[1], 16)), "write the second number to both places"


@pytest.mark.skipif(native.library() is None, reason="the kernels were not built")
@pytest.mark.parametrize("source", ["int64_t hse_other() { return 0; }", "int64_t hse_version() { return 1; }"])
def test_a_library_of_other_sources_is_left_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, source: str
) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    (tmp_path / "old.cpp").write_text(f'#include <cstdint>\nextern "C" {{ {source} }}\n')
    target = tmp_path / "_kernels.old.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, tmp_path / "old.cpp"], check=True, timeout=60)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "library.py"))
    with caplog.at_level(logging.WARNING, "hse_dist"):
        assert native.library.__wrapped__() is None
    assert "other sources" in caplog.text
