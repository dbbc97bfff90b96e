"""A recipe becomes a bundle with an evaluation of inpainting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import bundle
from models.bundle_schema import Preprocess
from starters.evaluation.inpainting import InpaintingQuality, boxes, drawings, fill_by_telea, psnr
from training.cli import main as train
from training.evaluation.__main__ import main as evaluate


def held_out(content: dict[str, Any], packages: Path, images: int = 200) -> Tensor:
    settings = InpaintingQuality.model_validate(content["release"]["quality"])
    return drawings(settings.data, Preprocess.model_validate(content["preprocess"]), packages, images)


def test_the_card_compares_the_network_with_telea(recipe_file: Path, packages: Path, tmp_path: Path) -> None:
    arguments = ["--runs", str(tmp_path / "runs"), "--bundles", str(tmp_path / "bundles"), "--cache", str(packages), "--no-tensorboard"]
    assert train([str(recipe_file), *arguments]) == 0
    folder = tmp_path / "bundles/tiny-inpaint/1.0.0"
    rows = {row["name"]: row for row in bundle.read(folder).spec.quality["inpainting"]}
    assert list(rows) == ["DiffMAE, 3 steps, temperature 1", "DiffMAE, 1 steps, temperature 0", "Telea"]
    assert all(row["perceptual"]["value"] > 0 and row["psnr"]["n"] == 4 for row in rows.values())
    card = (folder / "README.md").read_text()
    assert "drawings of tiny-art 1.0-1, and on no photographs" in card and "| Telea |" in card


def test_an_untrained_phase_is_named(recipe_file: Path, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([str(recipe_file), "--runs", str(tmp_path), "--cache", str(packages)]) == 2
    assert "phase finish has not been trained to its end yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--split", "test"], "--split: kind inpainting has no splits to choose from; leave it out"),
        (["--phase", "third"], "--phase: unknown phase third; the phases are begin, finish"),
        (["release.quality=null"], "release.quality: the recipe asks for no measurement, so there is nothing to evaluate"),
    ],
)
def test_what_a_recipe_has_none_of_is_refused(
    recipe_file: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(recipe_file), *changes]) == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_one_drawing_of_each_series_is_evaluated(content: dict[str, Any], packages: Path) -> None:
    evaluated = held_out(content, packages)
    assert evaluated.shape[0] >= 4 and evaluated.shape[1:] == (32, 32, 3)
    assert torch.equal(held_out(content, packages, 3), evaluated[:3])


def test_boxes_cover_a_tenth_to_a_quarter_and_several_colours(content: dict[str, Any], packages: Path) -> None:
    pixels = held_out(content, packages)
    holes = boxes(pixels, 0)
    shares = holes.float().mean(dim=(1, 2))
    assert shares.min() >= 0.08 and shares.max() <= 0.27  # sides are whole pixels
    assert all(len(image[hole].unique(dim=0)) > 1 for image, hole in zip(pixels, holes, strict=True))
    assert torch.equal(holes[:2], boxes(pixels[:2], 0))
    assert not torch.equal(holes, boxes(pixels, 1))


def test_telea_ignores_pixels_in_hole_and_keeps_those_outside(content: dict[str, Any], packages: Path) -> None:
    pixels = held_out(content, packages)
    holes = boxes(pixels, 0)
    filled = fill_by_telea(pixels, holes, 0)
    assert torch.equal(filled, fill_by_telea(torch.where(holes.unsqueeze(-1), 255 - pixels, pixels), holes, 0))
    assert torch.equal(filled[~holes], pixels[~holes])


def test_psnr_is_of_the_hole_alone() -> None:
    truth = torch.randint(40, 200, (2, 24, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    holes = torch.zeros(2, 24, 24, dtype=torch.bool)
    holes[0, 2:8, 3:9], holes[1, 10:20, 5:21] = True, True
    filled = torch.where(holes.unsqueeze(-1), truth + 10, truth)
    assert psnr(filled, truth, holes).tolist() == pytest.approx([20 * math.log10(255 / 10)] * 2, rel=1e-9)
    assert torch.equal(psnr(torch.where(holes.unsqueeze(-1), filled, 0), truth, holes), psnr(filled, truth, holes))
    assert psnr(truth, truth, holes).tolist() == pytest.approx([10 * math.log10(12 * 255**2)] * 2, rel=1e-9)
