"""A package of npm with a few grounds and cutouts, and a recipe that trains on camera moves over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tests.training.archives import npm

PREPROCESS = {"image_size": 48, "short_side": 48, "mean": [0.45, 0.45, 0.45], "std": [0.225, 0.225, 0.225]}
CLIP = {"frames": 8, "stride": 4}


def data(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write a package to the cache `folder` and return its entry of a recipe, with a flat ground, a tiny cutout and a broken file."""
    art = folder / "moving-art"
    art.mkdir(parents=True)
    dice = np.random.default_rng(0)
    for name in ("field-1", "meadow-1", "hill-1", "lake-1"):
        blobs = cv2.GaussianBlur(dice.standard_normal((96, 128, 3)).astype(np.float32), (0, 0), 2.5)
        scaled = 127 + 60 * blobs / blobs.std()
        Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).save(art / f"{name}.png")
    Image.new("RGB", (128, 96), "grey").save(art / "fog-1.png")
    (art / "broken-1.png").write_bytes(b"no picture")
    for name, side in (("ball", 40), ("kite", 40), ("star", 40), ("speck", 8)):
        picture = Image.new("RGBA", (side + 8, side + 8))
        picture.paste((200, 40, 40, 255), (4, 4, side + 4, side + 4))
        picture.save(art / f"{name}-cutout.png")
    named = npm(folder, "tiny-pictures", {file.name: file for file in sorted(art.iterdir())})
    pictures = [
        {"files": ["package/*-1.png"], "without": ["*/hill*", "*/lake*"], "role": "ground", "side": 128},
        {"files": ["package/hill-1.png"], "role": "ground", "side": 128, "part": "val"},
        {"files": ["package/lake-1.png"], "role": "ground", "side": 128, "part": "test"},
        *(
            {"files": [f"package/{name}-cutout.png"], "role": "cutout", "side": 32, "part": part}
            for name, part in (("ball", "train"), ("speck", "train"), ("kite", "val"), ("star", "test"))
        ),
    ]
    return {"kind": "camera-moves", "samples": 40, "packages": [{"npm": named, "license": "CC0-1.0", "pictures": pictures}], **changes}
