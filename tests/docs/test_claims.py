"""`docs/claims.yaml` says of every figure what prints it, and pages quote what it says."""

from __future__ import annotations

import datetime
import importlib.util
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.docs.code_blocks import ROOT

DOCUMENT = yaml.safe_load((ROOT / "docs" / "claims.yaml").read_text(encoding="utf-8"))
CLAIMS: list[dict[str, Any]] = DOCUMENT["claims"]
FIGURE = re.compile(r"(?<![\w./-])\d[\d,]*(?:\.\d+)?(?:\s?(?:×|%|ms|dB)|(?<=\.\d)|(?<=\.\d\d)|(?<=\.\d\d\d))(?![\d.])")
"""A decimal, or a number with ×, %, ms or dB."""
NO_CLAIMS = {"3.11"}
"""Versions that are needed."""


def words(text: str) -> str:
    return " ".join(text.split())


def prose(page: str) -> str:
    """Return the text without code, addresses and links' targets."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return words(re.sub(r"`[^`\n]*`|\]\([^)]*\)|https?://\S+", "", text))


@pytest.mark.parametrize(("page", "quote"), [(page, quote) for claim in CLAIMS for page in claim["pages"] for quote in claim["quotes"]])
def test_the_page_quotes_what_was_measured(page: str, quote: str) -> None:
    assert words(quote) in words((ROOT / page).read_text(encoding="utf-8")), (
        f"{page} says otherwise than docs/claims.yaml: correct one of them"
    )


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["what"])
def test_what_prints_it_exists(claim: dict[str, Any]) -> None:
    assert claim["machine"] in DOCUMENT["machines"]
    assert isinstance(claim["date"], datetime.date)
    tool, *rest = claim["command"].split()
    if tool == "python":
        assert rest[0] == "-m"
        assert importlib.util.find_spec(rest[1]) is not None
    elif tool == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert tool == "pytest"
    files = [word for word in rest if "/" in word and not word.startswith("-") and word != "B/16"]
    assert [file for file in files if not (ROOT / Path(file)).exists()] == []


def test_the_picture_of_the_demo_shows_what_is_quoted_of_it() -> None:
    (row,) = [claim for claim in CLAIMS if claim["command"] == "make demo"]
    text = " ".join(ElementTree.parse(ROOT / "docs" / "pictures" / "demo.svg").getroot().itertext()).replace("\xa0", " ")
    ratios = re.findall(r"[\d.]+×", " ".join(row["quotes"]))
    assert len(ratios) == 2
    assert [ratio for ratio in ratios if ratio not in text] == []


def test_every_figure_of_the_readme_has_a_row() -> None:
    quoted = " ".join(words(quote) for claim in CLAIMS if "README.md" in claim["pages"] for quote in claim["quotes"])
    figures = set(FIGURE.findall(prose("README.md"))) - NO_CLAIMS
    assert len(figures) >= 4, "the README's figures are not found any more"
    assert sorted(figure for figure in figures if figure not in quoted) == []
