"""What a worker imports to load the shipped bundles: each start waits for it."""

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
