"""Where the code of the documentation runs: a folder with the files that it names, in front of a service that answers every task."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.harness import forked

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
        """What it prints, as a program: a copy of a process that has imported what it needs."""
        file = self.folder / "page.py"
        file.write_text(self._at_the_service(code))
        finished = forked.run("tests.docs.page", str(file), environment=self.environment, seconds=PATIENCE_S, folder=self.folder)
        assert finished.returncode == 0, f"{code}\n\n{finished.stdout}\n{finished.stderr}"
        return finished.stdout

    def _at_the_service(self, code: str) -> str:
        address = self.url.removeprefix("http://")
        return _ADDRESS.sub(lambda found: (found[1] or "") + address, code)

    def _run(self, command: list[str]) -> str:
        finished = subprocess.run(command, cwd=self.folder, env=dict(self.environment), capture_output=True, text=True, timeout=PATIENCE_S)
        assert finished.returncode == 0, f"{command[-1]}\n\n{finished.stdout}\n{finished.stderr}"
        return finished.stdout
