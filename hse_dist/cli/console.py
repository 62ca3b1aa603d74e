"""What a job shows: its log on standard error, its result as one JSON line on standard output.

Libraries and their C++ parts print to file descriptor 1 as they like. So while a job runs, descriptor 1 is standard
error, and only the result goes to what standard output was.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from hse_dist.log import set_levels
from hse_dist.screen import console


@contextmanager
def only_result() -> Iterator[TextIO]:
    """The real standard output for the block; whatever else is printed meanwhile goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr), os.fdopen(os.dup(kept), "w", encoding="utf-8") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def write_result(result: Mapping[str, Any], stdout: TextIO) -> None:
    """The result as one line of JSON; numbers that JSON lacks (NaN, infinity) become null."""
    stdout.write(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def set_up_logging() -> None:
    """This project's messages from INFO up and everybody's warnings, on standard error; in colour on a terminal."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(console=console(), show_path=False, omit_repeated_times=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="%H:%M:%S"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], force=True)
    set_levels()
