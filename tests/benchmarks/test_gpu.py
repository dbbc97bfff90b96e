"""`benchmarks.gpu`, on the CPU: the same code takes the figures of a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_on_the_cpu_prints_rows_that_say_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sentences, rows = printed.split("machines:")
    claims = yaml.safe_load(f"machines:{rows}")["claims"]
    assert [claim["quotes"] for claim in claims] == [[line[2:]] for line in sentences.splitlines() if line.startswith("- ")]
    assert len(claims) == 6
    assert all(quote.startswith("On the CPU, not a GPU: ") for claim in claims for quote in claim["quotes"])


def test_without_a_gpu_it_ends_with_one_sentence() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cuda:99"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "error: device: cuda:99 is set, but torch sees" in ended.stderr
