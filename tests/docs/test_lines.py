"""Short lines in the prose of the pages, so that diffs can be read. Tables, code and headings may be longer."""

from __future__ import annotations

import pytest

from tests.docs.code_blocks import PAGES, ROOT

MAX_LENGTH = 120


def prose(text: str) -> list[str]:
    """Lines that are neither code nor a heading nor a row of a table."""
    lines, code = [], False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        code ^= fence
        if not (fence or code or line.lstrip().startswith(("#", "|"))):
            lines.append(line)
    return lines


@pytest.mark.parametrize("page", PAGES)
def test_its_lines_of_prose_are_short(page: str) -> None:
    assert [line for line in prose((ROOT / page).read_text(encoding="utf-8")) if len(line) > MAX_LENGTH] == []
