"""`hse-dist submit`: send a job to a cluster, show what it says, and end as it ends.

In: a configuration and the words of a job. Out: the job's own result, or its error with its exit code; with
`wait=False` the job's name at once. Ctrl-C and SIGTERM end this command, and the job only where the user says so.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hse_dist.config import Config
from hse_dist.errors import HseError, PreemptedError
from hse_dist.run_folder import RunFolder
from hse_dist.submit.address import job_server
from hse_dist.submit.follow import follow
from hse_dist.submit.install import pip_field
from hse_dist.submit.log_lines import LogLines
from hse_dist.submit.outcome import outcome
from hse_dist.submit.package import CONFIG, make_package
from hse_dist.submit.paths import Paths
from hse_dist.submit.server import JobServer
from hse_dist.submit.shared import VARIABLE, mark, remove, told

MORE_SECONDS = 15
"""Beyond `cluster.grace_seconds`, after which Ray kills a job that was asked to stop."""
CHECKOUT = Path(__file__).resolve().parents[2]
INTERRUPTED = 130
FILES = ("--histories", "--output")
"""Options of `recommend` that are paths."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sending:
    """How a job is sent.

    Attributes:
        address: `--address`, if said. working_dir: whose code goes along. install: whether the cluster installs the
            packages. torch_index: for that. wait: until the job ends. minutes: limit of this wait.
    """

    address: str | None = None
    working_dir: Path | None = None
    install: bool = False
    torch_index: str | None = None
    wait: bool = True
    minutes: int = 7 * 24 * 60


def submit(config: Config, text: str, words: Sequence[str], paths: Paths, sending: Sending) -> dict[str, Any]:
    """Submit `hse-dist WORDS…`; the job's result, or its name.

    Args:
        text: of the configuration's file, which the job finds as `package.CONFIG`.
        paths: whose shared folders the job looks for.

    Raises:
        HseError: nothing was sent; or the job failed, with its own exit code; or this command ends before the job.
    """
    address = job_server(sending.address, config.cluster.address, os.environ)
    name = f"hse-{words[0]}-{secrets.token_hex(4)}"
    folder = sending.working_dir or (CHECKOUT if sending.install else None)
    pip = pip_field(folder, config.cluster.device, sending.torch_index) if sending.install and folder else None
    server = JobServer(address)
    marks = mark(paths.shared, name)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            size = make_package(package := Path(scratch) / "job.zip", text, folder)
            what = f"the configuration and {folder}" if folder else "the configuration"
            log.info("Sending %d kB to %s: %s", math.ceil(size / 1e3), address, what)
            environment = _runtime_env(package, config, told(marks), pip)
            # exec: the exit code, and SIGTERM, are those of Python, not of a shell around it
            server.submit(f"exec python -m hse_dist.cli {shlex.join(words)}", environment, name)
        except BaseException:
            remove(marks)
            raise
    log.info("The job is %s; to stop it: %s", name, how("stop", server, name))
    if not sending.wait:
        return {"submission_id": name, "address": address}
    try:
        return _wait(server, name, sending.minutes, config.cluster.grace_seconds)
    finally:
        remove(marks)


def _runtime_env(package: Path, config: Config, marks: str, pip: dict[str, Any] | None) -> dict[str, Any]:
    """Ray's runtime_env of the job, of its driver and its workers."""
    # Ray kills a job 3 s after it asked it to stop, which is too soon for a checkpoint
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(config.cluster.grace_seconds + MORE_SECONDS)}
    if marks:
        variables[VARIABLE] = marks
    if os.environ.get("HSE_DEBUG") == "1":
        variables["HSE_DEBUG"] = "1"
    environment: dict[str, Any] = {"working_dir": str(package), "env_vars": variables}
    return environment if pip is None else {**environment, "pip": pip}


def _wait(server: JobServer, name: str, minutes: int, grace_seconds: int) -> dict[str, Any]:
    lines = LogLines(lambda line: print(line, file=sys.stderr, flush=True))
    try:
        state = follow(server, name, lines, 60.0 * minutes)
    except KeyboardInterrupt:
        if not _asks_to_stop(name):
            raise _left(server, name, "interrupted", INTERRUPTED) from None
        server.stop(name)
        state = follow(server, name, lines, grace_seconds + 2.0 * MORE_SECONDS)
    except PreemptedError:
        raise _left(server, name, "terminated", PreemptedError.exit_code) from None
    except HseError as error:
        error.cause = f"{error.cause} {_look_on(server, name)}".strip()
        raise
    return outcome(state, lines.end(), lacks_package=lines.lacks_package)


def _asks_to_stop(name: str) -> bool:
    """Whether the user, if there is one, wants the job to stop."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"\nStop the job {name}, too? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def _left(server: JobServer, name: str, what: str, code: int) -> HseError:
    error = HseError(f"This command was {what}; the job {name} goes on.", cause=_look_on(server, name))
    error.exit_code = code
    return error


def _look_on(server: JobServer, name: str) -> str:
    return f"Follow it with `{how('logs --follow', server, name)}`, stop it with `{how('stop', server, name)}`."


def how(verb: str, server: JobServer, name: str) -> str:
    """The command of Ray's that does this to the job."""
    return f"ray job {verb} --address {server.address} {name}"


def recommend_words(config: Config, paths: Paths, options: Sequence[str], here: Path) -> list[str]:
    """The words of `recommend`, which takes the export of the configuration's run."""
    export = here / RunFolder(config).export
    paths.shared["export.folder"] = export
    words, is_path = ["recommend", str(export)], False
    for option in options:
        name, equals, value = option.partition("=")
        if is_path:
            option = str(here / option)
        elif name in FILES and equals:
            option = f"{name}={here / value}"
        is_path = option in FILES
        words.append(option)
    return words


def job_words(job: str, overrides: Sequence[str], paths: Paths, options: Sequence[str]) -> list[str]:
    """The job's words on the cluster, for jobs that take a configuration."""
    # the job joins the cluster that it runs in, whatever address drivers elsewhere use
    return [job, CONFIG, *overrides, *paths.overrides, "cluster.address=none", *options]
