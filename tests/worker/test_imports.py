"""Imports of a worker that loads the shipped bundles, and of programs that each start waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOAD_ALL = """
import sys
from pathlib import Path
import server.worker.main
from models.bundle_folders import discover, read_discovered
from models.loading import load, unsupported_reason
for path in discover(Path(sys.argv[1])):
    bundle = read_discovered(path)
    if unsupported_reason(bundle.spec) is None:
        load(bundle)
print(*[name for name in ("torch._dynamo", "sympy", "scipy.stats", "scipy.optimize", "numba") if name in sys.modules])
"""


def test_loading_shipped_bundles_imports_no_compiler() -> None:
    bundles = Path(__file__).parents[2] / "bundles"
    ended = subprocess.run([sys.executable, "-c", LOAD_ALL, str(bundles)], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_a_trial_of_a_graph_imports_neither_torch_nor_pydantic() -> None:
    program = "import sys, models.systems.onnx.trial_program; print(*{'torch', 'pydantic'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
