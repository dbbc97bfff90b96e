"""`server.worker.backends.make ARM FORMAT BUNDLE CACHE`: the program that writes a graph, or compiles loops, for one arm of a bundle.

Neither a slot nor the interpreter's lock of a worker waits for it. One runs at a time on a machine, with a limit of CPU time.
"""

from __future__ import annotations

import fcntl
import resource
import sys
from pathlib import Path

from models.bundle import read
from server.worker.backends.learner import Format
from server.worker.backends.verification import DTYPES, GRAPHS, LOOPS, loops_seal

MAX_CPU_S = 60


def make(arm: str, loaded: Format, bundle_path: Path, cache: Path) -> None:
    """Write what an arm needs to `cache`. loaded: format of PyTorch's weights. Raises OSError if it cannot, and what loading raises."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if arm == "fused":
            from kernels.numba_loader import load_compiled_loops, verify_sealed

            load_compiled_loops(DTYPES[loaded], cache / LOOPS)
            verify_sealed(cache / LOOPS)
            loops_seal(cache, DTYPES[loaded]).touch()
            return
        from models.systems.onnx.classifier_backend import write_graph

        write_graph(read(bundle_path), cache / GRAPHS, "int8" if arm == "int8" else "float32")


if __name__ == "__main__":
    try:
        make(sys.argv[1], "bfloat16" if sys.argv[2] == "bfloat16" else "float32", Path(sys.argv[3]), Path(sys.argv[4]))
    except Exception as error:  # the worker logs the last line
        sys.exit(f"{type(error).__name__}: {error}")
