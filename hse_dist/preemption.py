"""SIGTERM: the machine is wanted for something else, and a run has a moment to write down where it is.

In: the signal, to the process that drives a run or to one that works for it. Out: `asked()`, which a training loop
looks at after each step, and an end of the driver with exit code 143 when the grace time is over, whatever the run is
doing by then.
Outside of `stoppable` a driver has nothing to write down and ends at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hse_dist.errors import PreemptedError
from hse_dist.screen import show_cursor

TELL_AGAIN_SECONDS = 1.0
_asked = threading.Event()
_came = threading.Event()
log = logging.getLogger(__name__)


def asked() -> bool:
    """Whether this process is to stop."""
    return _asked.is_set()


def ask() -> None:
    """Let this process stop when it next looks."""
    _asked.set()


def forget() -> None:
    """Go on as if nobody had asked; for a process that works for one run after the other."""
    _asked.clear()


def came() -> bool:
    """Whether SIGTERM came during the last `stoppable` block of this process, perhaps too late for its training."""
    return _came.is_set()


def listen() -> None:
    """Let SIGTERM ask this process to stop, from now on; in its main thread."""
    forget()
    signal.signal(signal.SIGTERM, lambda number, frame: ask())


@contextmanager
def ending() -> Iterator[None]:
    """A block that SIGTERM ends at once.

    Raises:
        PreemptedError: SIGTERM came.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise PreemptedError("Stopped by SIGTERM, outside of training; what is there already stays.")

    with _handler(end):
        yield


@contextmanager
def stoppable(grace_seconds: float, tell: Callable[[], None] | None = None) -> Iterator[None]:
    """A block that SIGTERM asks to stop, and that ends with this process `grace_seconds` later.

    Args:
        tell: tells processes elsewhere that they are to stop; called again and again, from another thread, until the
            block ends: who hears it may just be starting again.
    """
    over = threading.Event()
    forget()
    _came.clear()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked():
            return
        ask()
        _came.set()
        threading.Thread(target=_wait, args=(over, grace_seconds, tell), name="grace", daemon=True).start()

    try:
        with _handler(stop):
            yield
    finally:
        over.set()
        forget()


def _wait(over: threading.Event, grace_seconds: float, tell: Callable[[], None] | None) -> None:
    log.warning("SIGTERM: a checkpoint, and an end, within %.0f s", grace_seconds)
    timer = threading.Timer(grace_seconds, _give_up, (over, grace_seconds))
    timer.daemon = True
    timer.start()
    while tell is not None and not over.is_set():
        try:
            tell()
        except Exception as error:
            log.warning("The workers cannot be told to stop yet: %s", error)
        over.wait(TELL_AGAIN_SECONDS)


def _give_up(over: threading.Event, grace_seconds: float) -> None:
    if over.is_set():
        return
    log.error("No checkpoint within %.0f s (setting cluster.grace_seconds): the last one counts", grace_seconds)
    show_cursor()
    os._exit(PreemptedError.exit_code)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A block that neither Ctrl-C nor SIGTERM breaks off; it must have limits of its own."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _handler(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The handler of SIGTERM for the block; in another thread than the main one there can be none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
