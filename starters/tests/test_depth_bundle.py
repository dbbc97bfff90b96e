"""The committed starter for depth is what it says, and `shapes` reconstructs a picture by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import bundle
from models.bundle import Bundle
from starters.evaluation import cards as model_card


@pytest.fixture(scope="module")
def starter() -> Bundle:
    return bundle.read(Path("bundles/depth/1.0.0"))


def test_it_is_small_whole_and_licensed(starter: Bundle) -> None:
    starter.verify()
    assert sum(file.stat().st_size for file in starter.path.iterdir()) <= 16_000_000
    assert starter.spec.task == "depth" and "CC-BY-3.0" in starter.spec.license
    card = (starter.path / "README.md").read_text(encoding="utf-8")
    rendered = model_card.render(starter.spec).splitlines()
    assert [line for line in rendered if line.startswith("|") and line not in card.splitlines()] == []
    assert "Kator Legaz" in card


def test_it_is_a_member_of_shapes() -> None:
    shapes = bundle.read(Path("bundles/shapes/1.1.0"))
    assert {role: member.spec.id for role, member in shapes.members().items()} == {"shape": "reconstruct@2.0.0", "depth": "depth@1.0.0"}
