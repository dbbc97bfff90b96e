"""The committed bundle that reconstructs is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import bundle
from models.bundle import Bundle
from training import model_card, recipe
from training.data.renders import Renders
from training.judging.shapes import EXTRUDED, SEEN


@pytest.fixture(scope="module")
def made() -> Bundle:
    return bundle.read(Path("bundles/reconstruct/1.0.0"))


def test_it_is_small_whole_and_described(made: Bundle) -> None:
    made.verify()
    assert sum(file.stat().st_size for file in made.path.iterdir()) <= 16_000_000
    assert (made.path / "README.md").read_text(encoding="utf-8") == model_card.render(made.spec)


def test_it_names_the_licence_of_every_package(made: Bundle) -> None:
    plan = recipe.read(Path("training/recipes/reconstruct.yaml"))
    assert isinstance(plan.data, Renders) and plan.space == made.spec.space
    named = {(package["name"], package["version"], package["license"]) for package in made.spec.provenance["data"]["packages"]}
    assert named == {(entry.package.name, entry.package.version, entry.license) for entry in plan.data.packages}
    assert {license for _, _, license in named} == {"MIT", "zlib", "Apache-2.0", "BSD-3-Clause"}


def test_it_was_judged_on_categories_that_it_was_not_trained_on(made: Bundle) -> None:
    judged = {row["category"] for row in made.spec.quality["by_object"]}
    assert judged.isdisjoint(made.spec.provenance["data"]["objects"]) and made.spec.quality["objects"] == 19
    assert {SEEN, EXTRUDED} < {row["name"] for row in made.spec.quality["reconstruction"]}
