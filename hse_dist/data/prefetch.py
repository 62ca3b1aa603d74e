"""Runs an iterator in a thread, a bounded number of items ahead.

In: an iterator. Out: its items in order. The thread ends with the iterator, when the consumer closes the generator, or
when either fails; an exception of the iterator is raised where its item would have come.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
POLL_SECONDS = 0.1
"""How often a blocked thread looks whether it is still wanted."""


def prefetch(items: Iterator[Item], depth: int, name: str = "prefetch") -> Iterator[Item]:
    """The items of `items`, at most `depth` of them made before they are asked for."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, ready, stop), name=name, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


def _produce(items: Iterator[Any], ready: queue.Queue[tuple[str, Any]], stop: threading.Event) -> None:
    message: tuple[str, Any]
    try:
        for item in items:
            if not _put(ready, ("item", item), stop):
                return
        message = ("end", None)
    except BaseException as error:  # the consumer raises it, whatever it is
        message = ("error", error)
    _put(ready, message, stop)


def _put(ready: queue.Queue[tuple[str, Any]], message: tuple[str, Any], stop: threading.Event) -> bool:
    """Whether the message was taken before the consumer stopped."""
    while not stop.is_set():
        try:
            ready.put(message, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
