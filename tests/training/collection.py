"""A small clip-art collection, made here, inside two real Debian packages."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from models.bundle import sha256_of

VERSION = "1.0-1"
SHAPES = {"things/balls": "ball", "things/boxes": "box", "things/sticks": "stick"}


def draw(shape: str, random_numbers: random.Random) -> Image.Image:
    """A picture of 48 x 40 pixels, transparent around one coloured shape on a ground of its own."""
    image = Image.new("RGBA", (48, 40), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    for _ in range(6):  # a pattern by which no two pictures are alike
        x, y = random_numbers.randrange(48), random_numbers.randrange(40)
        pen.rectangle((x, y, x + 8, y + 8), fill=tuple(random_numbers.randrange(150, 256) for _ in range(3)))
    colour = {"ball": (220, 20, 20, 255), "box": (20, 160, 20, 255), "stick": (20, 20, 220, 255)}[shape]
    x, y = random_numbers.randrange(4, 20), random_numbers.randrange(4, 12)
    if shape == "ball":
        pen.ellipse((x, y, x + 22, y + 22), fill=colour)
    elif shape == "box":
        pen.rectangle((x, y, x + 22, y + 20), fill=colour)
    else:
        pen.line((x, y, x + 24, y + 24), fill=colour, width=5)
    return image


def word(number: int) -> str:
    """A name without digits, since pictures whose names differ in digits are one series."""
    return "".join(chr(ord("a") + number // 26**place % 26) for place in range(3)) + "x"


def build(folder: Path, per_shape: int = 24) -> dict[str, dict[str, str]]:
    """Both packages in `folder`; returns the recipe's `pictures` and `titles`."""
    random_numbers = random.Random(0)
    share = {kind: folder / f"tree-{kind}" / "usr/share/openclipart" / kind for kind in ("png", "svg")}
    number = 0
    for place, shape in SHAPES.items():
        for _ in range(per_shape):
            name = f"{place}/{word(number)}"
            number += 1
            for kind in share:
                (share[kind] / name).parent.mkdir(parents=True, exist_ok=True)
            draw(shape, random_numbers).save(share["png"] / f"{name}.png")
            (share["svg"] / f"{name}.svg").write_text(_svg(f"A {shape}", shape))
    return {part: _package(folder, f"tiny-{kind}", folder / f"tree-{kind}") for part, kind in (("pictures", "png"), ("titles", "svg"))}


def _svg(title: str, keyword: str) -> str:
    return (
        "<svg><metadata><dc:title>" + title + "</dc:title><dc:subject><rdf:Bag><rdf:li>" + keyword + "</rdf:li></rdf:Bag></dc:subject>"
        "<dc:creator><cc:Agent><dc:title>Somebody</dc:title></cc:Agent></dc:creator></metadata></svg>"
    )


def _package(folder: Path, name: str, tree: Path) -> dict[str, str]:
    control = tree / "DEBIAN/control"
    control.parent.mkdir()
    control.write_text(
        f"Package: {name}\nVersion: {VERSION}\nArchitecture: all\nMaintainer: Nobody <n@example.org>\nDescription: pictures\n"
    )
    file = folder / f"{name}_{VERSION}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, file], check=True, capture_output=True)
    return {"name": name, "version": VERSION, "sha256": sha256_of(file)}


def recipe(data: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Everything of a recipe, as small as it can be."""
    augmentation = {"scale": [0.6, 1.0]}
    phase = {"epochs": 2, "warmup": 0.5, "batch_size": 8, "lr": 0.002, "weight_decay": 0.05, "augmentation": augmentation}
    return {
        "name": "tiny",
        "version": "0.1",
        "description": "Three shapes",
        "license": "CC0-1.0",
        "seed": 3,
        "precision": "no",
        "checkpoint_every": 2,
        "data": {
            **data,
            "license": "CC0-1.0",
            "side": 24,
            "split": {"train": 0.5, "val": 0.2, "test": 0.3},
            "categories": [{"label": label, "folders": [place]} for place, label in SHAPES.items()],
        },
        "preprocess": {"image_size": 16, "short_side": 16, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "model": {
            "image_size": 16,
            "patch_size": 4,
            "width": 16,
            "depth": 2,
            "heads": 2,
            "decoder_width": 8,
            "decoder_depth": 1,
            "decoder_heads": 2,
        },
        "pretrain": {**phase, "betas": [0.9, 0.95], "mask_ratio": 0.75},
        "finetune": {**phase, "betas": [0.9, 0.999], "layer_decay": 0.75, "drop_path": 0.1, "label_smoothing": 0.1, "merge": [0, 3]},
        "ladder": {"min_throughput": 1.000001, "batch_size": 2, "rounds": 3, "rungs": [{"name": "r3", "schedule": 3}]},
    }
