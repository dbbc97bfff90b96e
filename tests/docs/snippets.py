"""The code blocks of the documentation."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

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
    return [block for page in PAGES for block in of_page(page) if block.language == language]


def of_page(page: str) -> list[Block]:
    found = _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    return [Block(page, number, match[2], textwrap.dedent(match[3])) for number, match in enumerate(found, 1)]


def commands(block: Block) -> list[str]:
    """The calls of `opsin` in a block of the shell, without what follows `#`, `|`, `>` or the closing bracket."""
    joined = block.code.replace("\\\n", " ")
    return [match[1].strip() for match in re.finditer(r"(?:^|\s|\()(opsin [^#|>)\n]+)", joined)]
