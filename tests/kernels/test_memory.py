"""Freed activations stay with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from kernels.malloc import keep_freed_memory
import torch
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
torch.set_num_threads(1)
def activate():
    a = torch.ones(5_000_000)
    return a.sum() + torch.ones(5_000_000).sum()
activate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    activate()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told to keep what is freed")
def test_freed_activations_stay_in_the_process() -> None:
    def run(mode: str) -> list[str]:
        return subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True).stdout.split()

    (retained, faults), (_, faults_before) = run("keep"), run("leave")
    assert retained == "True"
    assert int(faults) < 0.1 * int(faults_before)
