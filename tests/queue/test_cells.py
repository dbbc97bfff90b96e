"""The queue needs the keys of its cell and of the service, and no others: its tests pass where nothing else may be touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CELL = "7"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["cell", "cluster"])
def test_the_queue_touches_its_cell_alone(kind: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "OPSIN_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE)]
    ended = subprocess.run(
        command,
        env=environment | {"OPSIN_TEST_REDIS": kind, "OPSIN_TEST_CELL": CELL},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
