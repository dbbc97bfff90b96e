"""What a process of pytest-xdist is given, and in which order.

Packages whose files share a service stay together, or it would be started for each file. What takes longest begins first: a long file
at the end would leave the other CPUs idle. How long each takes is in `seconds.json`, which `pytest --note-seconds` writes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

TOGETHER = (
    "tests/actions",
    "tests/clips",
    "tests/docs",
    "tests/e2e",
    "tests/gateway",
    "tests/inpaint",
    "tests/open_inference",
    "tests/opsin/embedding",
    "tests/reconstruct",
    "tests/words",
)
NOTED = Path(__file__).parents[1] / "seconds.json"
SECONDS: dict[str, float] = json.loads(NOTED.read_text())
"""Of files and packages that take long for their number of tests: roughly, since only their order matters."""
USUAL_SECONDS = 0.05
"""Of a test."""
NOTED_SECONDS = 5.0
"""Of a file or package that is worth a line."""


class Together(LoadFileScheduling):
    """Hands out files, and the packages that stay together, one after the other as they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


class Noting:
    """Writes what took long into `seconds.json`, beside what was noted of files that did not run now."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[unit(report.nodeid)] += report.duration

    def pytest_sessionfinish(self) -> None:
        known = {name: seconds for name, seconds in SECONDS.items() if name not in self._seconds}
        known |= {name: round(seconds) for name, seconds in self._seconds.items() if seconds >= NOTED_SECONDS}
        longest = dict(sorted(known.items(), key=lambda item: (-item[1], item[0])))
        NOTED.write_text(json.dumps(longest, indent=2) + "\n")


def unit(test: str) -> str:
    """The file of the test, or its package where that stays together."""
    file = test.partition("::")[0]
    return next((package for package in TOGETHER if file.startswith(f"{package}/")), file)


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by how long their unit takes."""
    tests = Counter(unit(item.nodeid) for item in items)
    seconds = {name: SECONDS.get(name, USUAL_SECONDS * count) for name, count in tests.items()}
    items.sort(key=lambda item: (-seconds[unit(item.nodeid)], unit(item.nodeid)))
