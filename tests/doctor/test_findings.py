"""What facts are judged to be: pure functions, any answer of any system."""

from __future__ import annotations

from pathlib import Path

import pytest

from hse_dist.doctor.finding import Finding, result
from hse_dist.doctor.machine import GB, check_folder, examine_machine, judge_room, judge_skew, nearest_folder
from hse_dist.doctor.versions import EXACT, FILE, NEEDED, check_python, check_versions, installed, normal, pins

PINNED = {**dict.fromkeys((*EXACT, *NEEDED), "1.0"), "six": "1.0", "triton": "1.0"}
THERE = {name: version for name, version in PINNED.items() if name not in ("fbgemm-gpu", "triton")}


def test_pins_are_names_as_indexes_compare_them():
    assert pins("# a\nA_b.C==1.2 # why\n\nx\n") == {"a-b-c": "1.2"}
    assert normal("typing_extensions") == "typing-extensions"
    assert pins(FILE.read_text(encoding="utf-8")).keys() >= {normal(name) for name in EXACT}


@pytest.mark.parametrize(
    ("changes", "statuses", "words"),
    [
        ({}, ["ok", "ok"], ""),
        ({"torch": "1.0+cpu"}, ["ok", "ok"], "torch 1.0+cpu"),
        ({"six": "2.0"}, ["ok", "warning"], "six 2.0, pinned 1.0"),
        ({"torchrec": "1.1"}, ["failed", "ok"], "torchrec 1.1, pinned 1.0"),
        ({"scipy": None}, ["failed", "ok"], "scipy is missing"),
        ({"fbgemm-gpu": "1.0"}, ["failed", "ok"], "overwrite each other"),
        ({"fbgemm-gpu-cpu": None}, ["failed", "ok"], "fbgemm-gpu-cpu or fbgemm-gpu is missing"),
        ({"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.0"}, ["ok", "ok"], "fbgemm-gpu 1.0"),
    ],
)
def test_versions(changes, statuses, words):
    there = {name: version for name, version in (THERE | changes).items() if version}
    found = check_versions(there, PINNED)
    assert [one.status for one in found] == statuses
    assert any(words in one.what for one in found)
    assert all(bool(one.mend) == (one.status != "ok") for one in found)


def test_this_environment_has_what_the_project_pins():
    assert [one for one in check_versions(installed(), pins(FILE.read_text())) if one.status == "failed"] == []


@pytest.mark.parametrize(("version", "status"), [((3, 10), "failed"), ((3, 11), "ok"), ((3, 12), "warning")])
def test_python(version, status):
    assert check_python(version).status == status


@pytest.mark.parametrize(("free", "status"), [(GB, "failed"), (3 * GB, "warning"), (30 * GB, "ok")])
def test_room(free, status):
    found = judge_room("disk", " at /x", free, (2 * GB, 20 * GB), "Free some.")
    assert found.status == status and found.mend == ("" if status == "ok" else "Free some.")
    assert found.what == f"{free / GB:.1f} GB free at /x"


@pytest.mark.parametrize(
    ("offsets", "status", "words"),
    [
        ({"a": (0.0, 0.1)}, "ok", "one clock"),
        ({"a": (0.0, 0.1), "b": (-0.9, 0.1)}, "ok", "b differs most, by 0.900 s"),
        ({"a": (0.0, 0.1), "b": (-3.0, 0.1)}, "warning", "b differs most, by 3.000 s"),
        # the answer took so long that its clock may be right
        ({"a": (0.0, 0.1), "b": (3.0, 2.5)}, "ok", "3.000 s (± 2.500)"),
    ],
)
def test_clocks(offsets, status, words):
    found = judge_skew(offsets)
    assert found.status == status and words in found.what


def test_a_folder_that_can_be_made_is_not_made(tmp_path):
    found = check_folder(tmp_path / "deep" / "run")
    assert found.status == "ok" and str(tmp_path) in found.what and list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    found = check_folder(tmp_path / "file" / "run")
    assert found.status == "failed" and found.mend
    # and the disk is judged by the folders that can be
    names = [one.check for one in examine_machine([str(tmp_path / "file" / "run"), str(tmp_path)])]
    assert names[2:4] == ["disk", "memory"]


def test_folders_that_can_nowhere_be_are_findings(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    found = examine_machine([str(tmp_path / "file" / "a"), str(tmp_path / "file" / "b")])
    assert [one.status for one in found[:2]] == ["failed", "failed"] and "disk" not in {one.check for one in found}
    exists = Path.exists

    def closed(path: Path) -> bool:
        if path.name == "shut":
            raise PermissionError
        return exists(path)

    monkeypatch.setattr(Path, "exists", closed)
    assert nearest_folder(tmp_path / "shut") == tmp_path


def test_result_counts_and_names_the_exit_code():
    found = [Finding("a", "ok", "1"), Finding("b", "warning", "2", "do"), Finding("c", "failed", "3", "do")]
    assert result(found[:2], 0.5) == {
        "ok": True,
        "failed": 0,
        "warnings": 1,
        "findings": [
            {"check": "a", "status": "ok", "what": "1", "mend": ""},
            {"check": "b", "status": "warning", "what": "2", "mend": "do"},
        ],
        "seconds": 0.5,
        "exit_code": 0,
    }
    whole = result(found, 0.5)
    assert (whole["ok"], whole["failed"], whole["exit_code"]) == (False, 1, 1)
