"""Bundles that crash their worker while it loads them: after two crashes they are not loaded again."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from server.processes.supervisor_protocol import LOADING_FILE_VARIABLE, REFUSED_BUNDLES_VARIABLE
from server.telemetry import logs

log = logs.get(__name__)

MAX_LOAD_CRASHES = 2


class LoadCrashTracker:
    """A counter of the crashes of all workers of a service. folder: private; the caller removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._deaths: Counter[str] = Counter()
        self._oom_kills = oom_kills()

    def environment(self, worker: int) -> Mapping[str, str]:
        """Return the variables of a worker, by its number, that is about to start."""
        self._file(worker).unlink(missing_ok=True)
        refused = [content for content, deaths in self._deaths.items() if deaths >= MAX_LOAD_CRASHES]
        return {LOADING_FILE_VARIABLE: str(self._file(worker)), REFUSED_BUNDLES_VARIABLE: " ".join(refused)}

    def record_exit(self, worker: int, status: int) -> None:
        """Count a crash. status: exit code, or negative signal. SIGKILL comes from outside, unless the kernel says that memory ran out."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        try:
            content = self._file(worker).read_text()
        except OSError:
            return
        if content and status != 0 and (status != -signal.SIGKILL or self._oom_kills > before):
            self._deaths[content] += 1
            if self._deaths[content] == MAX_LOAD_CRASHES:
                log.error("bundle refused until its files change: two workers crashed while loading it", bundle=content.partition(":")[0])

    def _file(self, worker: int) -> Path:
        return self._folder / f"loading-{worker}"


def oom_kills() -> int:
    """Return the number of processes of this control group that the kernel has killed for memory; 0 if it is not counted."""
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
