"""Links between the Markdown files of the repository lead somewhere, those to a heading too, and every page is in the site's navigation."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.code_blocks import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
MADE_BY_THE_SITE = re.compile(r"^(\.\./)?reference/")


def markdown() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "--", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if "/goldens/" not in name]


def anchors(file: Path) -> set[str]:
    """Return anchors as GitHub and the site make them of headings."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", file.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("name", markdown())
def test_its_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    lost = []
    for link in LINK.findall(FENCE.sub("", file.read_text())):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:") or MADE_BY_THE_SITE.match(path):
            continue
        target = (file.parent / path) if path else file
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def test_the_navigation_names_every_page() -> None:
    def leaves(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(inner)

    listed = sorted(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = [name.removeprefix("docs/") for name in markdown() if name.startswith("docs/")]
    assert [name for name in listed if not MADE_BY_THE_SITE.match(name)] == sorted(pages)
