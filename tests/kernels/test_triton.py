"""The Triton kernels on a machine without a GPU: interpreted on its CPU, and compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux alone")
ROOT = Path(__file__).parents[2]
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Maximum shared memory of a thread block in bytes, by compute capability (CUDA C++ Programming Guide, technical specifications)."""


def run_interpreted(*options: str, shapes: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the tests in `interpreted` in a process in which Triton interprets. shapes: how many random ones the slow tests draw."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/kernels/interpreted", *options]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "RANDOM_SHAPES": str(shapes)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def run_compiled(tmp_path: Path, *options: str) -> list[dict[str, object]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "tools.compile_kernels", *options]
    return [
        json.loads(line)
        for line in subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    ]


def assert_passed(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@pytest.mark.timeout(1200)
def test_kernels_equal_reference_in_triton_interpreter() -> None:
    assert_passed(run_interpreted())


@pytest.mark.slow
def test_the_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    kernels = run_compiled(tmp_path)
    assert {"best_partner", "rank", "select", "merge", "merge_backward"} <= {kernel["kernel"] for kernel in kernels}
    assert {"attend", "attend_backward_keys", "attend_backward_queries"} <= {kernel["kernel"] for kernel in kernels}
    assert all(kernel["shared"] <= SHARED_MEMORY[kernel["sm"]] for kernel in kernels)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_kernels_agree_with_the_reference_over_many_shapes() -> None:
    assert_passed(run_interpreted("-m", "slow", shapes=40))


@pytest.mark.hours
@pytest.mark.timeout(20000)
def test_kernels_equal_reference_over_thousands_of_shapes() -> None:
    assert_passed(run_interpreted("-m", "slow", shapes=5000))


@pytest.mark.hours
@pytest.mark.timeout(7200)
def test_every_candidate_of_the_tuner_compiles_and_fits_a_gpu(tmp_path: Path) -> None:
    assert all(kernel["shared"] <= SHARED_MEMORY[kernel["sm"]] for kernel in run_compiled(tmp_path, "--all"))
