"""`pytest --fast`: the tests that start no process, of files and packages that do not take long.

Nobody lists them: complete runs note how long each takes (`schedule.py`), and a test that is about to start a process is skipped there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.harness.schedule import ROOT, seconds_noted, unit

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
        """Whatever a test makes of the refusal, such as an error of its own, it is skipped: one line tells how many were."""
        report = yield
        if self._tried and call.excinfo is not None:
            report.outcome, report.longrepr = "skipped", (__file__, 1, REASON)
        return report

    def _refuse(self) -> None:
        if self._on:
            self._tried = True
            pytest.skip(REASON)
