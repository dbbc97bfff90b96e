"""`make test-fast` runs what starts no process, and skips the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("tests/scheduler/test_scheduler.py", "tests/supervisor/test_children.py")


def test_what_starts_a_process_is_skipped_and_the_rest_runs() -> None:
    command = [sys.executable, "-m", "pytest", "--fast", "-q", "-p", "no:cacheprovider", *FILES]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^SKIPPED \[\d+\] tests/harness/fast.py:1: starts a process$", ran.stdout, re.M), ran.stdout
    assert re.search(r"^[1-9]\d* passed, [1-9]\d* skipped", ran.stdout, re.M), ran.stdout
