from __future__ import annotations

from pathlib import Path

import pytest

from hse_dist.memory import available_memory


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.mark.parametrize("folder", ["sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"])
def test_the_smaller_of_machine_and_control_group(tmp_path: Path, folder: str) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal: 9999 kB\nMemAvailable:    4000 kB\n")
    assert available_memory(tmp_path) == 4_096_000
    used = folder.replace("memory.max", "memory.current").replace("limit", "usage")
    write(tmp_path, used, "100\n")
    for limit, expected in (("max\n", 4_096_000), ("1100\n", 1000), ("60\n", 0), (f"{2**60}\n", 4_096_000)):
        write(tmp_path, folder, limit)
        assert available_memory(tmp_path) == expected
    write(tmp_path, folder, "1100\n")
    entry = "inactive_file" if folder.endswith("max") else "total_inactive_file"
    write(tmp_path, str(Path(folder).parent / "memory.stat"), f"cache 999\n{entry} 70\n")
    assert available_memory(tmp_path) == 1070, "pages of files are not free"


def test_a_system_without_these_files_still_answers(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > 2**20
    assert 0 < available_memory() <= available_memory(tmp_path)
