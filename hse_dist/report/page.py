"""A run folder as one page: what it trained, how well, what its live entries did, what it sent, on what.

In: a run folder's own files. Out: HTML without scripts and without anything from elsewhere; a policy in the page says
so to the browser. Whatever comes from files is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hse_dist.errors import RunFolderError
from hse_dist.files import new_file, too_deep
from hse_dist.report.svg import bars, lines, number
from hse_dist.run_folder import flat, read_record

STYLE = """
:root{--back:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d1d9e0;--card:#f6f8fa;
--c0:#0969da;--c1:#bc4c00;--c2:#1a7f37;--c3:#8250df;--c4:#bf3989;--c5:#57606a;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--back:#0d1117;--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--card:#161b22;
--c0:#4493f8;--c1:#f0883e;--c2:#3fb950;--c3:#ab7df8;--c4:#f778ba;--c5:#b1bac4}}
body{background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1060px;
padding:24px}h1{font-size:24px;margin:0;overflow-wrap:anywhere}h2{font-size:18px;margin:32px 0 8px}
.soft,.none,.legend{color:var(--soft)}.cards,.charts{display:grid;gap:12px}
.cards{grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin-top:16px}
.charts{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
.card,figure{background:var(--card);border:1px solid var(--line);border-radius:8px;margin:0;padding:12px}
.card b{display:block;font-size:22px}figcaption{font-weight:600;margin-bottom:6px}svg{display:block;width:100%}
svg text{fill:var(--soft);font-size:12px}.grid{stroke:var(--line)}.line{fill:none;stroke-width:2}
.line.c0{opacity:.8;stroke-width:4}
.legend{margin:4px 0 0;font-size:13px}.legend span{margin-right:14px}
.key{border-radius:2px;display:inline-block;height:10px;margin-right:5px;width:10px}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
.line{stroke:var(--c)}.dot,.bar{fill:var(--c)}.key{background:var(--c)}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;width:100%}
td,th{border-bottom:1px solid var(--line);padding:4px 8px;text-align:left;vertical-align:top}
td{overflow-wrap:break-word}.long{min-width:240px;overflow-wrap:anywhere}th{white-space:nowrap}
"""
MOST = 1e300
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report(folder: Path, output: Path | None) -> dict[str, Any]:
    """Write the page, into the run folder as `report.html` unless told otherwise.

    Raises:
        RunFolderError: there is no run, or the page cannot be written.
    """
    if not (folder / "config.json").exists():
        raise RunFolderError(f"There is no run in {folder}.", cause="Train first.")
    path = output or folder / "report.html"
    page = make_page(folder)
    try:
        with new_file(path) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="replace")  # JSON may hold what is no text
    except OSError as error:
        raise RunFolderError(f"The page {path} cannot be written: {error}.") from None
    return {"page": str(path), "bytes": path.stat().st_size}


def make_page(folder: Path) -> str:
    """The page of a run folder."""
    settings = flat(read_record(folder / "config.json", "run's configuration"))
    events, journal = read_lines(folder / "metrics.jsonl"), read_lines(folder / "topology.jsonl")
    train, valid = _of(events, "train"), _of(events, "validate")
    body = [
        f"<h1>{escape(str(folder))}</h1>",
        f'<p class="soft">{_text(settings, "data.source")}, start {_text(settings, "sparsity.start")}</p>',
        _cards(train, valid, journal),
        "<h2>Quality</h2>",
        _charts(_quality(train, valid)),
        "<h2>Live entries</h2>",
        _charts(_entries(journal)),
        "<h2>Wire and time</h2>",
        _charts(_costs(train, journal)),
        "<h2>Journal of the topology</h2>",
        _table(*_journal(journal)),
        "<h2>Evaluation</h2>",
        _table(("file", "figure", "value"), _evaluations(folder)),
        "<h2>Configuration</h2>",
        _table(("setting", "value"), [(key, json.dumps(value)) for key, value in sorted(settings.items())]),
        "<h2>Environment of this page</h2>",
        _table(("what", "value"), _environment()),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(folder.name)}: hse_dist</title><style>{STYLE}</style></head><body>"
    )
    return head + "\n".join(body) + "</body></html>\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines with a step; a torn last line, or no file at all, is no error while a run goes on."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    events = [one for one in found if isinstance(one, dict) and not too_deep(one)]
    return [one for one in events if _number(one.get("step")) is not None]


def _number(value: Any) -> float | None:
    """None for what is no number, or none that a chart could show."""
    return float(value) if isinstance(value, int | float) and abs(value) < MOST else None


def _text(settings: dict[str, Any], key: str) -> str:
    return escape(str(settings.get(key, "–")))


def _of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("kind") == kind]


def _points(events: Iterable[dict[str, Any]], *path: str) -> list[tuple[float, float]]:
    """(step, number) of the events that have it."""
    found = []
    for event in events:
        value: Any = event
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        step, shown = _number(event["step"]), _number(value)
        if step is not None and shown is not None:
            found.append((step, shown))
    return found


def _cards(train: list[dict[str, Any]], valid: list[dict[str, Any]], journal: list[dict[str, Any]]) -> str:
    quality, speed = _points(valid, "ndcg@100"), _points(train, "steps_per_second")
    best = max(quality, key=lambda point: point[1], default=None)
    live, loss = _points(journal, "live"), _points(train, "loss")
    cards = {
        "best validation nDCG@100": f"{best[1]:.3f}" if best else "–",
        "at step": number(best[0]) if best else "–",
        "validation at the start": f"{quality[0][1]:.3f}" if quality else "–",
        "last loss": number(loss[-1][1]) if loss else "–",
        "live entries": number(live[-1][1]) if live else "–",
        "steps a second": number(speed[-1][1]) if speed else "–",
    }
    parts = (f'<div class="card">{escape(name)}<b>{escape(value)}</b></div>' for name, value in cards.items())
    return f'<div class="cards">{"".join(parts)}</div>'


def _quality(train: list[dict[str, Any]], valid: list[dict[str, Any]]) -> dict[str, str]:
    names = ("ndcg@100", "recall@20", "recall@50")
    charts = {
        "Loss": lines({"loss": _points(train, "loss")}, "step"),
        "Validation": lines({name: _points(valid, name) for name in names}, "step"),
    }
    weights = {name: _points(train, "parameters", name) for name in _names(train, "parameters")}
    return charts | ({"Weights of features, temperature": lines(weights, "step")} if weights else {})


def _names(events: Iterable[dict[str, Any]], key: str) -> list[str]:
    """What the events' dictionaries `key` have, in order."""
    found = (event.get(key) for event in events)
    return list(dict.fromkeys(name for value in found if isinstance(value, dict) for name in value))


def _entries(journal: list[dict[str, Any]]) -> dict[str, str]:
    thirds = {name: _points(journal, "tables", "item", name) for name in ("head", "middle", "tail")}
    churn = {name: _points(journal, name) for name in ("dropped", "grown", "restored")}
    tables = {name: _points(journal, "tables", name, "live") for name in _names(journal, "tables")}
    used = [(step, 1 - dead) for step, dead in _points(journal, "dead_columns")]
    return {
        "Live entries by third of popularity": lines(thirds, "step", zero=True),
        "Share of columns in use": lines({"columns in use": used}, "step", zero=True),
        "Churn of a rewire": lines(churn, "step", zero=True),
        "Share of positions ever live": lines({"explored": _points(journal, "explored")}, "step", zero=True),
        "Mean age of a live entry, in rewires": lines({"age": _points(journal, "mean_age")}, "step", zero=True),
        "Live entries": lines({"live": _points(journal, "live")}, "step", zero=True),
        **({"Live entries by table": lines(tables, "step", zero=True)} if len(tables) > 1 else {}),
    }


def _costs(train: list[dict[str, Any]], journal: list[dict[str, Any]]) -> dict[str, str]:
    wire = train[-1].get("wire_bytes") if train else None
    sent = {kind: _number(value) or 0.0 for kind, value in wire.items()} if isinstance(wire, dict) else {}
    speed = [1e3 / value for _, value in _points(train, "steps_per_second") if value > 0]
    waits = [value for _, value in _points(train, "wait_share")]
    budget: dict[str, float] = {}
    if speed and waits:
        whole, wait = sum(speed) / len(speed), sum(waits) / len(waits)
        budget = {"waits for a batch": whole * wait, "everything else": whole * (1 - wait)}
    seconds = {f"rewire, step {number(step)}": 1e3 * value for step, value in _points(journal, "seconds")[-3:]}
    return {
        "Sent to other ranks since the start": bars({kind: value / 1e6 for kind, value in sent.items()}, "MB"),
        "Time budget of a step, on average": bars(budget | seconds, "ms"),
        "Steps a second": lines({"steps": _points(train, "steps_per_second")}, "step", zero=True),
    }


def _journal(journal: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """All that the journal holds: a column a key."""
    flattened = [flat(entry) for entry in journal]
    first = ["version", "step"]
    keys = [*first, *sorted({key for entry in flattened for key in entry} - set(first))]
    return keys, [[entry.get(key, "") for key in keys] for entry in flattened]


def _evaluations(folder: Path) -> list[tuple[str, str, Any]]:
    found = []
    for path in sorted((folder / "evaluation").glob("*.json")):
        figures = flat(read_record(path, "evaluation"))
        found += [(path.name, key, value) for key, value in figures.items() if not isinstance(value, list)]
    return found


def _environment() -> list[tuple[str, Any]]:
    from hse_dist.benchmark.report import machine

    return [(key, value) for key, value in flat(machine("cpu")).items()]


def _charts(charts: dict[str, str]) -> str:
    parts = (f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>" for name, chart in charts.items())
    return f'<div class="charts">{"".join(parts)}</div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return '<p class="none">nothing there</p>'
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: Any) -> str:
    text = "–" if value is None else number(value) if isinstance(value, float) else str(value)
    return f"<td{' class=long' if len(text) > 40 else ''}>{escape(text)}</td>"
