"""The page of a run whose files hold the worst that users and crashes can write."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from hse_dist.cli.main import main
from hse_dist.config import dump_config, parse_config
from hse_dist.report.page import make_page
from hse_dist.report.svg import bars, lines

EVIL = '<script>alert("x")</script>&\'"<img src=x onerror=alert(1)>'
VOID = {"meta"}


class Reader(HTMLParser):
    """Elements, attributes and text; unbalanced elements are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack, self.tags, self.attributes, self.text = [], set(), [], ""
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run <b>"
    (folder / "evaluation").mkdir(parents=True)
    raw = {"data": {"source": EVIL}, "run": {"folder": "r"}}
    (folder / "config.json").write_text(dump_config(parse_config(raw, "of a test")))
    train = [
        {
            "kind": "train",
            "step": step,
            "loss": 1 / step,
            "steps_per_second": 20.0,
            "wait_share": 0.25,
            "wire_bytes": {"ids": 1000 * step, EVIL: 5},
        }
        for step in (1, 2, 3)
    ]
    valid = [{"kind": "validate", "step": 0, "ndcg@100": 0.5}, {"kind": "validate", "step": 3, "ndcg@100": 0.625}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*train, *valid])) + '\n{"kind": "tr')
    entry = {
        "version": 1,
        "step": 2,
        "live": 4321,
        "dropped": 7,
        "grown": 7,
        "restored": 0,
        "dead_columns": 0.25,
        "note": EVIL,
        "tables": {"item": {"head": 1, "middle": 2, "tail": 3}},
        "seconds": 0.5,
    }
    (folder / "topology.jsonl").write_text(json.dumps(entry) + "\n")
    (folder / "evaluation" / "test.json").write_text(json.dumps({"ndcg@100": 0.5, "who": EVIL}))
    return folder


def test_page_needs_nothing_from_elsewhere_and_escapes_what_files_say(run):
    page = make_page(run)
    read = Reader(page)
    assert "script" not in read.tags and "img" not in read.tags and "link" not in read.tags
    assert not [name for name, _ in read.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in page and "@import" not in page and "http" not in page.replace("http-equiv", "")
    assert read.text.count("<script>") >= 4  # source (twice), note, evaluation: all of it shown as text
    for text in ("0.625", "4 321", "tables.item.head", "dead_columns", "sparsity.schedule.interval", "versions.torch"):
        assert text in read.text
    assert "37.5 ms" in read.text and "12.5 ms" in read.text  # a quarter of 50 ms was waiting


def test_a_run_that_has_just_begun_has_a_page(run):
    for name in ("metrics.jsonl", "topology.jsonl"):
        (run / name).unlink()
    assert "nothing was measured" in Reader(make_page(run)).text


def test_charts_leave_out_what_is_no_number():
    assert Reader(lines({"a": [(0, float("nan")), (1, 2.0)]}, "step")).text.count("a: 2") == 1
    assert "nothing" in lines({"a": []}, "step") and "nothing" in bars({"a": float("nan")}, "MB")


def test_the_command_and_its_mistakes(run, tmp_path, capfd):
    assert main(["report", str(run)]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["bytes"] == (run / "report.html").stat().st_size
    (tmp_path / "file").write_text("")
    for words in ([str(tmp_path)], [str(run), "--output", str(tmp_path / "file" / "x.html")]):
        assert main(["report", *words]) == 2
        assert "Traceback" not in capfd.readouterr().err


def test_a_browser_shows_it(run, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    page = tmp_path / "page.html"
    page.write_text(make_page(run), encoding="utf-8")
    common = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*common, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "<svg" in shown.stdout and "<script" not in shown.stdout
    assert Reader(shown.stdout).text.count("<script>") >= 4
    subprocess.run(
        [*common, f"--screenshot={tmp_path / 'page.png'}", page.as_uri()], capture_output=True, timeout=120, check=True
    )
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
