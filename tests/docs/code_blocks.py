"""Code blocks of the documentation, and a folder with the files that they name."""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import forked_program

_ADDRESS = re.compile(r"(http://)?(127\.0\.0\.1|localhost):8000")
PATIENCE_S = 240


@dataclass(frozen=True)
class Desk:
    folder: Path
    url: str
    environment: Mapping[str, str]

    def shell(self, code: str) -> str:
        """Run a shell block. Return its output; any command that fails is a failure."""
        return self._run(["bash", "-euo", "pipefail", "-c", self._replace_address(code)])

    def python(self, code: str) -> str:
        """Run a block as a program, in a copy of a process that has imported what it needs. Return its output."""
        file = self.folder / "page.py"
        file.write_text(self._replace_address(code))
        finished = forked_program.run(
            "tests.support.child_programs", "file", str(file), environment=self.environment, seconds=PATIENCE_S, folder=self.folder
        )
        assert finished.returncode == 0, f"{code}\n\n{finished.stdout}\n{finished.stderr}"
        return finished.stdout

    def _replace_address(self, code: str) -> str:
        address = self.url.removeprefix("http://")
        return _ADDRESS.sub(lambda found: (found[1] or "") + address, code)

    def _run(self, command: list[str]) -> str:
        finished = subprocess.run(command, cwd=self.folder, env=dict(self.environment), capture_output=True, text=True, timeout=PATIENCE_S)
        assert finished.returncode == 0, f"{command[-1]}\n\n{finished.stdout}\n{finished.stderr}"
        return finished.stdout


ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(r"^( *)```(sh|python)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    """On its page, from 1."""
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"


def blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in read_blocks(page) if block.language == language]


def read_blocks(page: str) -> list[Block]:
    found = _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    return [Block(page, number, match[2], textwrap.dedent(match[3])) for number, match in enumerate(found, 1)]


def commands(block: Block) -> list[str]:
    """Return the calls of `opsin` in a block of the shell, without what follows `#`, `|`, `>` or the closing bracket.

    In calls of helm, `opsin` is the name of a release.
    """
    joined = re.sub(r"^helm .*", "", block.code.replace("\\\n", " "), flags=re.MULTILINE)
    return [match[1].strip() for match in re.finditer(r"(?:^|\s|\()(opsin [^#|>)\n]+)", joined)]
