"""Statistics of running processes, read while something else runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil


def worker() -> psutil.Process | None:
    """Return the worker of the service that this process has started, or None if it is not running."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "worker" in process.cmdline()[:5]:
                return process
        except psutil.Error:
            continue
    return None


@contextmanager
def largest(measure: Callable[[], Mapping[str, float]], every: float) -> Iterator[dict[str, float]]:
    """Yield the largest value of each figure during the `with` block. `measure` is called at this interval, in a thread."""
    peaks: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            for name, value in measure().items():
                peaks[name] = max(peaks.get(name, value), value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()
