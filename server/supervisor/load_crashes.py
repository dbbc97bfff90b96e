"""Bundles that end their worker while it loads them, whatever else it serves: after two deaths they are not loaded again."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from server.processes.supervisor_protocol import LOADING, REFUSED
from server.telemetry import logs

log = logs.get(__name__)

MOST_DEATHS = 2


class Losses:
    """Counts the deaths of all workers of a service. folder: private, to be removed by whoever made it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._deaths: Counter[str] = Counter()
        self._oom_kills = oom_kills()

    def environment(self, worker: int) -> Mapping[str, str]:
        """For a worker, by its number, that is about to start."""
        self._file(worker).unlink(missing_ok=True)
        refused = [content for content, deaths in self._deaths.items() if deaths >= MOST_DEATHS]
        return {LOADING: str(self._file(worker)), REFUSED: " ".join(refused)}

    def died(self, worker: int, status: int) -> None:
        """status: exit code, or the negative of a signal. SIGKILL comes from outside, unless the kernel says that memory ran out."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        try:
            content = self._file(worker).read_text()
        except OSError:
            return
        if content and status != 0 and (status != -signal.SIGKILL or self._oom_kills > before):
            self._deaths[content] += 1
            if self._deaths[content] == MOST_DEATHS:
                log.error(
                    "bundle refused until its files change: it ended two workers while it was loaded", bundle=content.partition(":")[0]
                )

    def _file(self, worker: int) -> Path:
        return self._folder / f"loading-{worker}"


def oom_kills() -> int:
    """Processes of this control group that the kernel has killed for memory; 0 where nobody counts them."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return 0
    for _, controllers, path in groups:
        root, name = ("", "memory.events") if not controllers else ("memory", "memory.oom_control")
        if controllers in ("", "memory"):
            try:
                counts = dict(line.split() for line in (Path("/sys/fs/cgroup") / root / path.lstrip("/") / name).read_text().splitlines())
                return int(counts["oom_kill"])
            except (OSError, ValueError, KeyError):
                continue
    return 0
