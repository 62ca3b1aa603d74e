"""What this project's code never does with what it reads, and what a local cluster never opens to others."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from hse_dist.testing.runs import SMALL

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("hse_dist", "jobs") for path in (ROOT / folder).rglob("*.py"))
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
MAY_PICKLE = {
    # torch's own `.metadata`, by an unpickler that knows torch's classes alone, once its checksum has been verified
    "hse_dist/checkpoint/streams.py": {"Unpickler", "UnpicklingError"},
    "hse_dist/checkpoint/reading.py": {"UnpicklingError"},
    # only to count the bytes of a message that Ray or torch is about to send
    "hse_dist/sparsity/client.py": {"dumps"},
    "hse_dist/sparsity/remote.py": {"dumps"},
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute; what is no such thing is a dot."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def option(call: ast.Call, name: str) -> object:
    """A keyword's constant; `...` where it is something else, None where it is not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else ...
    return None


def wrong_call(call: ast.Call) -> str:
    """What is wrong with a call; empty if nothing is."""
    name = dotted(call.func)
    last = name.rpartition(".")[2]
    if name in ("eval", "exec", "compile", "__import__") or name in ("os.system", "os.popen", "subprocess.getoutput"):
        return name
    if name.endswith("torch.load") and option(call, "weights_only") is not True:
        return "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and option(call, "allow_pickle") not in (None, False):
        return "np.load that may unpickle"
    if last in ("extractall", "extract", "unpack_archive"):
        return f"{name}: archives are not unpacked"
    if option(call, "shell") not in (None, False):
        return f"{name} with a shell"
    if name.startswith("yaml.") and "safe" not in last:
        return name
    return ""


def findings(source: str, allowed: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        said = ""
        if isinstance(node, ast.Call):
            said = wrong_call(node)
        elif isinstance(node, ast.Attribute) and dotted(node.value) in RUNS_WHAT_IT_READS and node.attr not in allowed:
            said = f"{dotted(node.value)}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in RUNS_WHAT_IT_READS:
            said = f"from {node.module} import …"
        elif isinstance(node, ast.Import) and not allowed:
            said = ", ".join(alias.name for alias in node.names if alias.name.partition(".")[0] in RUNS_WHAT_IT_READS)
        if said:
            yield f"line {getattr(node, 'lineno', 0)}: {said}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    allowed = MAY_PICKLE.get(str(path.relative_to(ROOT)), set())
    assert list(findings(path.read_text(encoding="utf-8"), allowed)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import shelve as s",
        "eval('1')",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=flag)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "zipfile.ZipFile(x).extractall(y)",
        "yaml.load(x)",
        "os.system(x)",
    ],
)
def test_the_test_above_can_fail(source: str) -> None:
    assert list(findings(source, set()))


def test_no_pickle_is_loaded_by_another_name() -> None:
    assert list(findings("pickle.loads(x)", {"dumps"})) == ["line 1: pickle.loads"]


CODE = """
import json, os, sys
{before}
from hse_dist.loopback import keep_to_loopback, keep_to_ourselves
keep_to_loopback(); keep_to_ourselves()
names = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "GLOO_SOCKET_IFNAME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
print(json.dumps([os.environ.get(name) for name in names]))
"""


def kept(before: str = "", **environment: str) -> list[str | None]:
    names = ("RAY_", "GLOO_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    code = CODE.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=plain | environment
    )
    found: list[str | None] = json.loads(done.stdout)
    return found


def test_a_local_cluster_is_told_to_keep_to_itself_unless_the_user_says_otherwise() -> None:
    cluster, interface, mode, token = kept()
    assert (cluster, interface, mode) == ("0", "lo", "token") and len(token or "") == 64
    assert kept()[3] != token
    assert kept(RAY_AUTH_MODE="disabled", GLOO_SOCKET_IFNAME="eth0") == ["0", "eth0", "disabled", None]
    assert kept(RAY_AUTH_TOKEN_PATH="/x")[2:] == ["token", None]
    # a Ray that has been imported has read the mode
    assert kept("sys.modules['ray'] = sys")[2:] == [None, None]


def processes_below(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(path.name))
    found = [root]
    for one in found:
        found += children.get(one, [])
    return found


def sockets_of(process: int) -> set[str]:
    """Inodes of its sockets."""
    found = set()
    for path in (f"/proc/{process}/fd/{name}" for name in _names(f"/proc/{process}/fd")):
        try:
            target = os.readlink(path)
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def listening(root: int) -> set[tuple[str, str]]:
    """(address, program) of all TCP sockets on which a process below `root` listens."""
    owner = {inode: process for process in processes_below(root) for inode in sockets_of(process)}
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] != "0A" or words[9] not in owner:  # 0A: it listens
                continue
            number = bytes.fromhex(words[1].partition(":")[0])
            # in words of four bytes, each in the machine's order
            number = b"".join(number[at : at + 4][::-1] for at in range(0, len(number), 4))
            try:
                program = Path(f"/proc/{owner[words[9]]}/cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                program = "gone"
            found.add((socket.inet_ntop(socket.AF_INET if len(number) == 4 else socket.AF_INET6, number), program))
    return found


def is_loopback(text: str) -> bool:
    address = ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def test_sockets_are_seen() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        assert "0.0.0.0" in {address for address, _ in listening(os.getpid())}
    assert is_loopback("127.0.0.1") and is_loopback("::ffff:127.0.0.1") and is_loopback("::1")
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.2", "::ffff:192.0.2.2")))


@pytest.mark.slow
@pytest.mark.ray
def test_a_local_run_with_two_workers_listens_on_loopback_alone(tmp_path: Path) -> None:
    raw = {**SMALL, "run": {"folder": str(tmp_path / "run")}, "cluster": {"workers": 2}}
    raw["data"] = {**raw["data"], "folder": str(tmp_path / "data")}
    words = [
        f"{section}.{key}={json.dumps(value).replace(': ', ' = ')}"
        for section, keys in raw.items()
        for key, value in keys.items()
    ]
    (tmp_path / "c.toml").write_text("")
    # as a user's shell has it: nothing that conftest.py sets
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))}
    command = [sys.executable, "-m", "hse_dist.cli", "train", str(tmp_path / "c.toml"), *words]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=environment)
    found: set[tuple[str, str]] = set()
    while run.poll() is None:
        found |= listening(run.pid)
        time.sleep(0.2)
    assert run.returncode == 0, (tmp_path / "said").read_text()[-3000:]
    programs = {program for address, program in found if is_loopback(address)}
    assert any("gcs_server" in program for program in programs), "no cluster was seen"
    # this process counts for Ray; its pages are what the option leaves out
    assert all("--disable-frontend" in program for program in programs if "dashboard.py" in program)
    # torch's TCPStore, where two workers meet, binds to every interface and has no setting for it (deploy/README.md)
    others = {(address, program) for address, program in found if not is_loopback(address)}
    assert {address for address, _ in others} <= {"::", "0.0.0.0"} and len(others) <= 1, others
    assert all("RayTrainWorker" in program or "torch" in program for _, program in others), others
