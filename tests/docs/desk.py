"""Where the code of the documentation runs: a folder with the files that it names, in front of a service that answers every task."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ADDRESS = re.compile(r"(http://)?(127\.0\.0\.1|localhost):8000")
PATIENCE_S = 240


@dataclass(frozen=True)
class Desk:
    folder: Path
    url: str
    environment: Mapping[str, str]

    def shell(self, code: str) -> str:
        """What it prints; any command that fails is a failure."""
        return self._run(["bash", "-euo", "pipefail", "-c", self._at_the_service(code)])

    def python(self, code: str) -> str:
        return self._run([sys.executable, "-c", self._at_the_service(code)])

    def _at_the_service(self, code: str) -> str:
        address = self.url.removeprefix("http://")
        return _ADDRESS.sub(lambda found: (found[1] or "") + address, code)

    def _run(self, command: list[str]) -> str:
        finished = subprocess.run(command, cwd=self.folder, env=dict(self.environment), capture_output=True, text=True, timeout=PATIENCE_S)
        assert finished.returncode == 0, f"{command[-1]}\n\n{finished.stdout}\n{finished.stderr}"
        return finished.stdout
