"""Files and folders that are whole or not there, whatever ends the writer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from hse_dist.files import new_folder, replace_folder


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_in_removal(patch: pytest.MonkeyPatch) -> None:
    """Every removal of a folder stops after its first file."""

    def rmtree(path: Path, **_: Any) -> None:
        if path.exists():
            next(one for one in path.iterdir()).unlink()
            raise Killed

    patch.setattr(shutil, "rmtree", rmtree)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    with new_folder(path) as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text(text)


@pytest.mark.parametrize("name", ["data", "da[t]a*"])
def test_a_kill_while_the_old_folder_is_removed_leaves_the_new_one_whole(tmp_path, name):
    path, other = tmp_path / name, tmp_path / f".{name}-2.7.old"
    write(path, "old")
    other.mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed), new_folder(path) as temporary:
        for file in ("a", "b"):
            (temporary / file).write_text("new")
        kill_in_removal(patch)
    assert [file.read_text() for file in sorted(path.iterdir())] == ["new", "new"]
    assert len(names(tmp_path)) == 3 and [one for one in names(tmp_path) if not one.startswith(".")] == [name]
    write(path, "newer")
    assert names(tmp_path) == sorted([name, other.name]), "hidden parts were left, or those of another folder removed"


def test_a_kill_while_a_folder_is_removed_leaves_nothing_under_its_name(tmp_path):
    write(tmp_path / "data", "old")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in_removal(patch)
        replace_folder(tmp_path / "data", None)
    assert not (tmp_path / "data").exists() and len(names(tmp_path)) == 1
    replace_folder(tmp_path / "data", None)
    assert names(tmp_path) == []


def test_an_exception_leaves_the_old_folder_as_it_was(tmp_path):
    write(tmp_path / "data", "old")
    with pytest.raises(ValueError), new_folder(tmp_path / "data") as temporary:
        (temporary / "a").write_text("new")
        raise ValueError
    assert names(tmp_path) == ["data"] and (tmp_path / "data" / "b").read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_not_replaced(tmp_path, kind):
    (tmp_path / "there").mkdir()
    path = tmp_path / "data"
    path.write_text("mine") if kind == "file" else path.symlink_to(tmp_path / "there")
    with pytest.raises(NotADirectoryError):
        write(path, "new")
    assert path.is_symlink() == (kind == "link") and names(tmp_path) == ["data", "there"]
