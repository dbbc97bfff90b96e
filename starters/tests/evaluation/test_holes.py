from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.bundle_schema import Preprocess
from starters.data.images.clip_art import series_of
from starters.evaluation.inpainting.holes import HeldOutDrawings, cut, drawings
from starters.evaluation.inpainting.quality import InpaintingQuality
from starters.evaluation.inpainting.settings import Hole


def held_out(content: dict[str, Any], packages: Path, images: int = 200) -> HeldOutDrawings:
    settings = InpaintingQuality.model_validate(content["release"]["quality"])
    return drawings(settings.data, Preprocess.model_validate(content["preprocess"]), packages, slice(images))


def test_one_drawing_of_each_series_is_evaluated(content: dict[str, Any], packages: Path) -> None:
    evaluated = held_out(content, packages)
    assert len({series_of(name) for name in evaluated.names}) == len(evaluated) >= 4
    assert evaluated.pixels.shape == (len(evaluated), 32, 32, 3)
    assert held_out(content, packages, 3).names == evaluated.names[:3]


def test_boxes_cover_a_tenth_to_a_quarter_and_several_colours(content: dict[str, Any], packages: Path) -> None:
    pixels = held_out(content, packages).pixels
    holes = cut(Hole.BOXES, pixels, 0)
    shares = holes.float().mean(dim=(1, 2))
    assert shares.min() >= 0.08 and shares.max() <= 0.27  # sides are whole pixels
    assert all(len(image[hole].unique(dim=0)) > 1 for image, hole in zip(pixels, holes, strict=True))


def test_a_hole_depends_on_its_image_and_number_alone(content: dict[str, Any], packages: Path) -> None:
    pixels = held_out(content, packages).pixels
    for kind in Hole:
        assert torch.equal(cut(kind, pixels, 0)[:2], cut(kind, pixels[:2], 0))
    assert not torch.equal(cut(Hole.BOXES, pixels, 0), cut(Hole.BOXES, pixels, 1))
