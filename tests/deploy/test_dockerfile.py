"""The Dockerfile by the rules of hadolint that matter here; no image is built."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest), continued lines joined, comments left out."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            image, _, name = re.fullmatch(r"(\S+)( AS (\S+))", rest).groups()
            # DL3006, DL3007: another stage, or a tag that is not `latest`
            assert image in found or re.search(r":\d[^:]*$", image), f"{image} has no fixed tag"
            found[name] = []
        else:
            found[list(found)[-1]].append((word, rest))
    return found


def test_targets_run_as_a_user_that_is_not_root_and_begin_with_a_list():
    for target in ("cpu", "cuda"):
        assert ("FROM", f"run AS {target}") in instructions() and {"COPY"} == dict(stages()[target]).keys()
    body = stages()["run"]
    assert [rest for word, rest in body if word == "USER"] == ["ray"]  # DL3002
    assert dict(body)["ENTRYPOINT"].startswith("[") and dict(body)["CMD"].startswith("[")  # DL3025


def test_installing_leaves_nothing_behind_and_is_pinned():
    for word, rest in instructions():
        assert word != "ADD" and "sudo" not in rest and not re.search(r"\bcd\b", rest)  # DL3020, DL3004, DL3003
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest and "--yes" in rest  # DL3015, DL3014
            assert rest.startswith("apt-get update") and "rm -rf /var/lib/apt/lists/*" in rest  # DL3009
            packages = rest.split("--no-install-recommends")[1].split("&&")[0].split()
            assert packages and all("=" in package for package in packages)  # DL3008
        if word == "WORKDIR":
            assert rest.startswith("/")  # DL3000


def test_everything_is_installed_by_the_one_script_and_what_is_copied_exists():
    runs = [rest for word, rest in instructions() if word == "RUN" and "install.sh" in rest]
    assert [re.search(r"DEVICE=(\w+)", rest)[1] for rest in runs] == ["cpu", "cuda"]
    assert not [rest for word, rest in instructions() if word == "RUN" and re.search(r"\bpip install", rest)]
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
