"""Runs of the tests: what they leave out, and what they give to one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.pytest_plugins import unit

ROOT = Path(__file__).parents[2]
TESTS = """
import multiprocessing, subprocess, sys

def test_that_starts_nothing():
    assert True

def test_a_program():
    subprocess.run([sys.executable, "--version"])

def test_a_copy():
    multiprocessing.get_context("forkserver").Process(target=print).start()

def test_a_program_whose_refusal_becomes_an_error():
    try:
        subprocess.run([sys.executable, "--version"])
    except BaseException as refusal:
        raise RuntimeError("the decoder ended") from refusal
"""


def test_a_fast_run_skips_what_starts_a_process(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    options = ("--fast", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "-c", "pyproject.toml")
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^SKIPPED \[3\] tests/support/pytest_plugins.py:1: starts a process$", ran.stdout, re.M), ran.stdout
    assert re.search(r"^1 passed, 3 skipped", ran.stdout, re.M), ran.stdout


def test_files_of_package_with_shared_service_stay_together() -> None:
    assert unit("tests/gateway/test_line.py::test_a") == unit("tests/gateway/test_jobs.py::test_b") == "tests/gateway"
    assert unit("tests/scheduler/test_slots.py::test_a") == "tests/scheduler/test_slots.py"
