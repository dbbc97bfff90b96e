from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.captures import motorcycle


def test_a_photograph_becomes_image_depth_mask_and_intrinsics(tmp_path: Path) -> None:
    motorcycle(tmp_path).write(tmp_path, "motorcycle")
    image = Image.open(tmp_path / "motorcycle.png")
    depth, mask = (np.asarray(Image.open(tmp_path / f"motorcycle-{kind}.png")) for kind in ("depth", "mask"))
    camera = json.loads((tmp_path / "motorcycle.json").read_text())
    assert image.mode == "RGB" and image.size == (741, 500) and depth.shape == mask.shape == (500, 741)
    assert depth.dtype == np.uint16 and set(np.unique(mask)) == {0, 255}
    metres = depth[mask > 0] / 1000
    assert metres.min() > 2.0 and metres.max() < 2.8
    rows, columns = np.nonzero(mask)
    wide = np.ptp((columns - camera["cx"]) / camera["fx"] * depth[rows, columns] / 1000)
    tall = np.ptp((rows - camera["cy"]) / camera["fy"] * depth[rows, columns] / 1000)
    assert 1.2 < wide < 2.2 and 0.7 < tall < 1.3  # metres of a motorcycle that is seen from the side and the front
