"""The pages of the project, and the commands, settings and files that they name.

In: Markdown. Out: blocks of code with their marks, and the words of each command. A block is fenced, or indented by
four. `<!-- not run: REASON -->` before blocks marks those up to the next heading or paragraph that is not a mark.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / ".github").glob("*.md")),
    *(path for folder in ("hse_dist", "deploy") for path in sorted((ROOT / folder).rglob("*.md"))),
]
MARK = re.compile(r"^<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """Code of a page.

    Attributes:
        text: without fence or indentation. kind: what the fence says; empty for an indented one. reason: why no test
            runs it; empty where one does.
    """

    page: Path
    text: str
    kind: str = ""
    reason: str = ""

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of this project, without what stands before its name."""
        for line in self.text.replace("\\\n", " ").splitlines():
            yield from commands_of(line)


def commands_of(line: str) -> Iterator[list[str]]:
    """The words after `hse-dist`, or those of the job that `jobs/JOB.py` stands for."""
    if not re.search(r"(^|\s)hse-dist\s|jobs/\w+\.py", line):
        return
    words = shlex.split(line.removeprefix("$ "), comments=True)
    for place, word in enumerate(words):
        if word == "hse-dist" and all("=" in before for before in words[:place]):
            yield words[place + 1 :]
        elif job := re.fullmatch(r"(?:.*/)?jobs/(\w+)\.py", word):
            yield [job[1], *words[place + 1 :]]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    found: list[Block] = []
    lines, reason, at = page.read_text(encoding="utf-8").splitlines(), "", 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            end = lines.index("```", at + 1)
            found.append(Block(page, "\n".join(lines[at + 1 : end]), line[3:], reason))
            at = end + 1
        elif line.startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            found.append(Block(page, "\n".join(text[4:] for text in lines[at:end]).rstrip(), "", reason))
            at = end
        else:
            if mark := MARK.match(line):
                reason = mark[1]
            elif line.strip():
                reason = ""
            at += 1
    return found


def inline(page: Path) -> Iterator[str]:
    """Code within sentences, also where it goes over the end of a line."""
    text = re.sub(r"^```.*?^```$|^    .*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"`([^`]+)`", text):
        yield " ".join(found.split())


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))
