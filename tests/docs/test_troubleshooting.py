"""`docs/troubleshooting.md` has messages in the words that the code prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from server.http.problems import ProblemKind
from tests.docs.code_blocks import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
MESSAGES = [message for heading in HEADINGS for message in re.findall(r"`(.+?)`(?=, `|$)", heading)]
PROBLEM = re.compile(r"^(\d{3}) `([a-z-]+)`(?: and `([a-z-]+)`)?", re.MULTILINE)


def code_texts() -> Iterator[str]:
    """Return every text in the code except docstrings; `…` stands for a value."""
    for package in ("opsin", "server", "models"):
        for file in (ROOT / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
            docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
            for node in nodes:
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                    yield re.sub(r"\{\w+\}", "…", node.value)  # texts of str.format


@pytest.fixture(scope="module")
def texts() -> str:
    return "\n".join(code_texts())


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_prints_it(texts: str, message: str) -> None:
    assert message in texts, f"no text of the code has {message!r}: correct docs/troubleshooting.md"


def test_as_many_messages_are_explained_as_it_says() -> None:
    assert len(HEADINGS) == 23


def test_problems_have_the_documented_status() -> None:
    documented = {(int(status), slug) for status, *slugs in PROBLEM.findall(PAGE) for slug in slugs if slug}
    assert len(documented) >= 8
    assert documented <= {(kind.status, kind.slug) for kind in ProblemKind}
