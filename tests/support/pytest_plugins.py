"""pytest plugins: `--fast` runs tests that start no process, and test files are shared out between processes of pytest-xdist.

A package whose `conftest.py` has a fixture of its scope, mostly a service, stays together, or the fixture would be made for each file. What
takes longest begins first: a long file at the end would leave the other CPUs idle. How long each takes is noted by every complete run in
pytest's cache. `seconds.json` is what a fresh checkout begins with.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Generator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[2]
FIRST_NOTES = ROOT / "tests" / "seconds.json"
NOTES = "opsin/seconds"
"""Name of the notes in pytest's cache."""
USUAL_SECONDS = 0.05
"""Usual duration of a test whose unit is not noted, in seconds."""
NOTED_SECONDS = 1.0
"""Minimum duration of a file or package that is worth a line, in seconds."""


class Together(LoadFileScheduling):
    """Hands out files, and the packages that stay together, one after the other as they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


class DurationNotes:
    """Notes how long each unit took, once all tests have run and passed: in pytest's cache, and on demand in `seconds.json`."""

    def __init__(self, *, for_all: bool) -> None:
        self._for_all = for_all
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[unit(report.nodeid)] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus != pytest.ExitCode.OK or not _is_complete(config := session.config):
            return
        ordered = sorted(self._seconds.items(), key=lambda item: (-item[1], item[0]))
        longest = {name: round(seconds) for name, seconds in ordered if seconds >= NOTED_SECONDS}
        if cache := _cache(config):
            cache.set(NOTES, longest)
        if self._for_all:
            FIRST_NOTES.write_text(json.dumps(longest, indent=2) + "\n")


def _is_complete(config: pytest.Config) -> bool:
    """Return whether the session runs what `make test` runs."""
    chosen = config.option.keyword or config.option.collectonly or config.option.markexpr not in config.getini("addopts")
    return config.args_source == pytest.Config.ArgsSource.TESTPATHS and not chosen


def seconds_noted(config: pytest.Config) -> dict[str, float]:
    """Files and packages → roughly how long they take, since only their order matters."""
    cache = _cache(config)
    noted: dict[str, float] | None = cache.get(NOTES, None) if cache else None
    return noted or json.loads(FIRST_NOTES.read_text())


def _cache(config: pytest.Config) -> pytest.Cache | None:
    """Return None if pytest has no cache."""
    return getattr(config, "cache", None)


def unit(test: str) -> str:
    """Return the file of the test, or its package if that stays together."""
    file = test.partition("::")[0]
    package = file.rpartition("/")[0]
    return package if _stays_together(package) else file


@functools.cache
def _stays_together(package: str) -> bool:
    conftest = ROOT / package / "conftest.py"
    return conftest.is_file() and 'scope="package"' in conftest.read_text()


def longest_first(items: list[pytest.Item], noted: dict[str, float]) -> None:
    """Sort tests by how long their unit takes."""
    tests = Counter(unit(item.nodeid) for item in items)
    seconds = {name: noted.get(name, USUAL_SECONDS * count) for name, count in tests.items()}
    items.sort(key=lambda item: (-seconds[unit(item.nodeid)], unit(item.nodeid)))


FAST_SECONDS = 2.0
"""Files and packages that take as long are not even imported."""
STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"})
"""Events of `sys.addaudithook`."""
REASON = "starts a process"


class Fast:
    """Leaves out what is slow, and keeps the rest from starting processes while a test or its fixtures run."""

    def __init__(self, config: pytest.Config) -> None:
        self._noted = seconds_noted(config)
        self._on = False
        self._tried = False
        sys.addaudithook(lambda event, _: self._refuse() if event in STARTS else None)
        start = BaseProcess.start  # of multiprocessing: it raises no event

        def refusing(process: BaseProcess) -> None:
            self._refuse()
            start(process)

        BaseProcess.start = refusing  # type: ignore[method-assign]

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        file = os.path.relpath(collection_path, ROOT)
        return True if self._noted.get(unit(f"{file}::"), 0.0) >= FAST_SECONDS else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._on, self._tried = True, False
        try:
            return (yield)
        finally:
            self._on = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Skip the test whatever it makes of the refusal, such as an error of its own. One line reports how many were skipped."""
        report = yield
        if self._tried and call.excinfo is not None:
            report.outcome, report.longrepr = "skipped", (__file__, 1, REASON)
        return report

    def _refuse(self) -> None:
        if self._on:
            self._tried = True
            pytest.skip(REASON)
