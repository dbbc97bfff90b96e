"""The `opsin` command in a process of its own, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def opsin(*arguments: str | Path, seconds: float = 240, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, for so many seconds at most, in a folder, with these OPSIN_… variables and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    command = [sys.executable, "-m", "opsin", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, cwd=folder, env={**inherited, **environment}, check=False
    )
