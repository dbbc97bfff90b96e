"""The `opsin` command as a user runs it, in a process of its own that has imported already what it needs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.harness import forked


def opsin(*arguments: str | Path, seconds: float = 240, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, for so many seconds at most, in a folder, with these OPSIN_… variables and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    return forked.run("opsin", *map(str, arguments), environment=inherited | environment, seconds=seconds, folder=folder)
