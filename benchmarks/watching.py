"""Figures of running processes, looked at while something else is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil


def worker() -> psutil.Process | None:
    """The worker of the service that this process has started; None: there is none just now."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "worker" in process.cmdline()[:5]:
                return process
        except psutil.Error:
            continue
    return None


@contextmanager
def largest(measure: Callable[[], Mapping[str, float]], every: float) -> Iterator[dict[str, float]]:
    """The largest value of each figure that is seen during the `with` block. `measure` is called every so many seconds, in a thread."""
    most: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            for name, value in measure().items():
                most[name] = max(most.get(name, value), value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
