"""The shape of the project: who imports whom, what may lie at the top, and how long things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("hse_dist", "jobs", "tests") for path in (ROOT / folder).rglob("*.py"))

# A package imports from itself and from those above it. `train` joins the others: it validates and
# saves.
LAYERS = (
    {path.stem for path in (ROOT / "hse_dist").glob("*.py")} | {"config"},  # what all of them build on
    {"native"},
    {"data"},
    {"tables"},
    {"model"},
    {"sparsity"},
    {"checkpoint"},
    {"evaluate"},
    {"export", "baselines"},
    {"serve"},
    {"train"},
    {"benchmark", "soak", "simulate", "submit"},
    {"doctor", "plan", "inspect", "report"},
    {"cli"},
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}

TOP = {
    "pyproject.toml",
    "hse_dist",
    "jobs",
    "configs",
    "tests",
    "deploy",
    "README.md",
    "Makefile",
    "LICENSE",
}
FILE_LINES, FUNCTION_LINES = 400, 70


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(module: str) -> str:
    """The package, or the module at the top, that a dotted name belongs to; empty for hse_dist itself."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """The parts of hse_dist that a file imports, inside functions too."""
    parts = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            # `from hse_dist import data` names the package after the word import
            modules = [node.module] if node.module != "hse_dist" else [f"hse_dist.{alias.name}" for alias in node.names]
        else:
            continue
        parts |= {part_of(module) for module in modules if module.split(".")[0] == "hse_dist"}
    return parts - {"__version__", ""}


def test_packages_import_only_leftwards():
    wrong = []
    for path in (ROOT / "hse_dist").rglob("*.py"):
        relative = path.relative_to(ROOT).with_suffix("")
        own = relative.parts[1]
        if own in ("__init__", "testing"):
            continue
        assert own in LEVELS, f"hse_dist/{own} has no place in LAYERS"
        for other in imported(path) - {own}:
            # the benchmark measures what the tests' helpers make, and the soak disturbs by their faults
            allowed = own in ("benchmark", "soak") if other == "testing" else LEVELS[other] <= LEVELS[own]
            if not allowed:
                wrong.append(f"{relative} imports {other}")
    assert wrong == []


def test_answers_from_an_export_need_neither_ray_nor_torch():
    # a fresh interpreter: this one has imported much
    code = (
        "import sys, hse_dist.export.recommender; print([m for m in ('ray', 'torch', 'torchrec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_known_entries_are_committed_at_the_top():
    try:
        done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    entries = {line.split("/")[0] for line in done.stdout.splitlines()}
    assert {entry for entry in entries if not entry.startswith(".")} - TOP == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_and_its_functions_are_short_and_explained(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= FILE_LINES, f"{lines} lines"
    module = tree(path)
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
    if path.is_relative_to(ROOT / "hse_dist") and not path.name.startswith("_"):
        assert ast.get_docstring(module), "no module docstring"
