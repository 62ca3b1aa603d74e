"""Probes in processes of their own: what is well, what raises, dies or hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from hse_dist.cli.main import main
from hse_dist.doctor import examine as module
from hse_dist.doctor.examine import Probe, death, finish, start
from hse_dist.doctor.finding import Finding

LIMIT = 90.0


def answer(probe: Probe) -> list[Finding]:
    return finish(probe, time.monotonic() + LIMIT)


def python(code: str) -> Probe:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Probe("a check", process, "Mend it.")


def test_one_real_operator_of_each_library_is_called():
    found = answer(start("libraries", "Install.", "libraries"))
    names = [one.check for one in found]
    assert names[:5] == ["fbgemm on cpu", "fused update on cpu", "torchrec", "compiled kernels", "devices"]
    assert all(one.status == "ok" for one in found[:3])


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_talk():
    assert answer(start("collectives", "", "ranks")) == [
        Finding("collectives", "ok", "2 gloo ranks sum, exchange and gather rightly")
    ]


@pytest.mark.distributed
def test_ranks_without_an_interface_are_a_failure_with_advice(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    (found,) = answer(start("collectives", "Set it.", "ranks"))
    assert (found.check, found.status, found.mend) == ("collectives", "failed", "Set it.")
    assert "no-such-interface" in found.what


def test_libraries_that_kill_their_process_are_a_failure(tmp_path, monkeypatch):
    (tmp_path / "fbgemm_gpu.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = answer(start("torch, fbgemm, torchrec", "Install.", "libraries"))
    assert found.status == "failed" and found.what.startswith("died of SIGSEGV") and found.mend == "Install."


def test_a_probe_that_hangs_is_ended_with_what_it_started():
    probe = python("import subprocess, sys, time; subprocess.Popen(['sleep', '77']); time.sleep(77)")
    began = time.monotonic()
    (found,) = finish(probe, began + 0.5)
    assert (found.status, found.mend) == ("failed", "Mend it.") and "no answer" in found.what
    # `sleep` holds the pipes: had it been left, reading them to their end would have waited for it
    assert time.monotonic() - began < 20 and probe.process.poll() == -9


def test_the_last_words_of_a_probe_that_raises():
    (found,) = answer(python("raise ValueError('no such thing')"))
    assert found == Finding("a check", "failed", "ValueError: no such thing", "Mend it.")
    assert death(1, "") == "it said nothing"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("failed", 1)])
def test_command_ends_with_1_where_something_failed(status, code, monkeypatch, capfd, tmp_path):
    asked = {}

    def examine(folders, address, *, cuda):
        asked.update(folders=folders, address=address, cuda=cuda)
        return [Finding("a [bold]check", status, "found", "Do this.")]

    monkeypatch.setattr(module, "examine", examine)
    (tmp_path / "x.toml").write_text('[run]\nfolder = "r"\n[cluster]\ndevice = "cuda"\n')
    words = ["doctor", str(tmp_path / "x.toml"), "data.folder=d", "--address", "here:1", "--folder", "f"]
    assert main(words) == code
    shown = capfd.readouterr()
    assert asked == {"folders": ["r", "d", "f"], "address": "here:1", "cuda": True}
    assert json.loads(shown.out)["exit_code"] == code
    assert all(text in shown.err for text in ("a [bold]check", status, "found", "Do this."))


@pytest.mark.slow
@pytest.mark.ray
def test_the_whole_examination_finds_nothing_wrong_here_in_less_than_half_a_minute(tmp_path):
    began = time.monotonic()
    found = module.examine([str(tmp_path)], cuda=True)
    assert time.monotonic() - began < 30
    assert [one.check for one in found if one.status == "failed"] in ([], ["cluster.device"])
    assert {"ray", "clocks", "collectives", "torchrec"} <= {one.check for one in found}
