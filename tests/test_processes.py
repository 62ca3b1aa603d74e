"""Descendants of this process, and that none of them outlives the block that started them."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from hse_dist.processes import descendants, kill_with_children, lives, nothing_left


def start_family() -> subprocess.Popen[bytes]:
    """A shell with a child that has a session of its own, and that ignores SIGTERM and the end of its parent."""
    process = subprocess.Popen(["sh", "-c", "trap '' TERM; setsid sleep 300 & sleep 300 & wait"])
    while len(descendants(process.pid)) < 2:
        time.sleep(0.01)
    return process


def test_nothing_is_left_of_what_a_block_started():
    other = subprocess.Popen(["sleep", "300"])
    with pytest.raises(KeyError), nothing_left(0.2):
        process = start_family()
        family = [one.pid for one in descendants(process.pid)]
        process.kill()  # its children are orphans now
        process.wait()
        assert all(map(lives, family)) and set(family) <= {one.pid for one in descendants(os.getpid())}
        raise KeyError
    assert not any(map(lives, family)) and lives(other.pid)
    other.kill()
    other.wait()


def test_a_machine_goes_with_all_that_runs_on_it():
    process = start_family()
    family = [process.pid, *(one.pid for one in descendants(process.pid))]
    kill_with_children(process.pid)
    process.wait()
    end = time.monotonic() + 5
    while any(map(lives, family)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(lives, family))
