"""Random crops of photographs and textures, and who made them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from models.spec import Preprocess
from tests.training.collection import deb
from training.data.base import Augment, Preparation
from training.data.packages import packages_in
from training.errors import DataError
from training.starters.images.grounds import Grounds, open_grounds
from training.starters.images.stills import credited

PREPROCESS = Preprocess(image_size=16, short_side=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LIBRARY = "usr/share/furniture/Tests.sh3f"


def ramp(side: int) -> Image.Image:
    """From black on the left to white on the right, so that a crop's contrast tells its width."""
    row = np.linspace(0, 255, side).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(row[None, :, None], (side, side, 3)).copy())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A data cache, and how a recipe names a photograph and the textures of a library in it."""
    folder = tmp_path_factory.mktemp("grounds")
    root = folder / "tree"
    (root / "usr/share/furniture").mkdir(parents=True)
    ramp(240).save(root / "usr/share/photograph.png")
    ramp(48).save(root / "usr/share/small.png")
    with zipfile.ZipFile(root / LIBRARY, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "name#1=Chair\ncreator#1=Bob\ncreator#2=Ann\\u00e9\ncreator#3=Bob\n")
        for name in ("wood.png", "logo.png"):
            archive.writestr(f"models/{name}", cv2.imencode(".png", np.asarray(ramp(120)))[1].tobytes())
    package = deb(folder, "tiny-grounds", root)
    taken = [
        {"debian": package, "license": "CC0-1.0", "pictures": [{"files": ["usr/share/*.png"], "role": "ground", "side": 240}]},
        {
            "debian": package,
            "license": "CC-BY-3.0",
            "pictures": [{"library": LIBRARY, "files": ["**/*.png"], "without": ["*logo*"], "role": "ground", "side": 240}],
        },
    ]
    return folder, {"kind": "grounds", "packages": taken}


def test_crops_have_their_own_share_of_a_picture_and_small_pictures_are_left_out(data: tuple[Path, dict[str, Any]]) -> None:
    folder, content = data
    settings = Grounds.model_validate(content | {"crop_scale": [0.04, 0.04]})
    source = open_grounds(settings, Preparation(PREPROCESS, augment=Augment(crop_scale=(0.9, 1.0)), cache=folder))
    assert [Path(entry.name).name for entry in source.entries] == ["photograph.png", "wood.png"]
    contrasts = [float(sample.max() - sample.min()) for sample in (source.sample(0, draw)["pixels"] for draw in range(8))]
    assert all(0.2 < contrast < 0.6 for contrast in contrasts), "a fifth of the width, give or take its shape"
    assert torch.equal(source.sample(1, 3)["pixels"], source.sample(1, 3)["pixels"])
    whole = open_grounds(settings, Preparation(PREPROCESS, augment=Augment(crop_scale=None), cache=folder)).sample(0, 0)["pixels"]
    assert float(whole.max() - whole.min()) > 1.7


def test_a_collection_of_small_pictures_is_refused(data: tuple[Path, dict[str, Any]]) -> None:
    folder, content = data
    with pytest.raises(DataError, match=r"data.smallest: no ground has 500 pixels"):
        open_grounds(Grounds.model_validate(content | {"smallest": 500}), Preparation(PREPROCESS, cache=folder))


def test_the_makers_of_libraries_are_named_by_licence_and_packages_once(data: tuple[Path, dict[str, Any]]) -> None:
    folder, content = data
    settings = Grounds.model_validate(content)
    assert credited(settings.packages, folder) == {"CC-BY-3.0": ["Anné", "Bob"]}
    assert [package.name for package in packages_in({"data": settings})] == ["tiny-grounds"]
