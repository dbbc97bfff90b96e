"""Flags of six made-up countries by three made-up artists, inside real packages of npm and Debian."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.training.archives import deb, npm

COLOURS = {
    "AA": ("#d01010", "#ffffff"),
    "BB": ("#ffffff", "#d01010"),
    "CC": ("#1020c0", "#f0d010"),
    "DD": ("#f0d010", "#1020c0"),
    "EE": ("#108020", "#202020"),
    "FF": ("#202020", "#108020"),
}
"""Code → upper and lower half."""


def svg(code: str) -> str:
    top, bottom = COLOURS[code]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 3">'
        f'<rect width="4" height="3" fill="{bottom}"/><rect width="4" height="1.5" fill="{top}"/></svg>'
    )


def png(code: str, size: tuple[int, int] = (40, 40), margin: int = 6) -> Image.Image:
    """Draw a flag with a transparent margin."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    right, bottom, middle = size[0] - margin - 1, size[1] - margin - 1, size[1] // 2
    pen.rectangle((margin, margin, right, bottom), fill=COLOURS[code][1])
    pen.rectangle((margin, margin, right, middle - 1), fill=COLOURS[code][0])
    return image


def code_points(code: str) -> str:
    return "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):x}" for letter in code)


def build(folder: Path) -> dict[str, Any]:
    """Write the packages to `folder` and return the recipe's `data`."""
    drawn = folder / "drawn"
    drawn.mkdir()
    for code in COLOURS:
        (drawn / f"{code}.svg").write_text(svg(code))
        png(code).save(drawn / f"{code}.png")
    clip_art = folder / "tree/usr/share/flags/land"
    clip_art.mkdir(parents=True)
    for code in COLOURS:
        png(code, (90, 60), 0).save(clip_art / f"{code.lower()}land.png")
    png("AA", (90, 60), 25).save(clip_art / "map.png")
    small = npm(folder, "tiny-flags", {f"flags/{code.lower()}.svg": drawn / f"{code}.svg" for code in COLOURS})
    large = npm(folder, "tiny-other-flags", {f"3x2/{code}.svg": drawn / f"{code}.svg" for code in COLOURS})
    emoji = npm(folder, "tiny-emoji", {f"img/{code_points(code)}.png": drawn / f"{code}.png" for code in COLOURS})
    return {
        "artworks": [
            {"name": "small", "package": small, "folder": "package/flags", "without": ["FF"]},
            {"name": "large", "package": large, "folder": "package/3x2", "upper_case": True},
        ],
        "held_out": "large",
        "held_out_every": 3,
        "side": 24,
        "clean": 0.4,
        "emoji": [{"name": "Tiny emoji", "package": emoji, "folder": "package/img"}],
        "labels": {code: f"{code}land" for code in COLOURS},
        "left_out": {"GG": "the flag of AA"},
        "clip_art": {
            "name": "Tiny clip art",
            "package": deb(folder, "tiny-clip-art", folder / "tree"),
            "folder": "usr/share/flags",
            "pictures": {f"land/{code.lower()}land": code for code in COLOURS},
            "excluded": {"land/map": "a map"},
        },
    }


def recipe(data: dict[str, Any]) -> dict[str, Any]:
    """Everything of the starter's recipe, as small as it can be."""
    network = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    masked = {**network, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "normalise_targets": True}
    loop = {"epochs": 2, "batch_size": 4}
    labels = {
        "model": {"architecture": "vit", "config": {**network, "pool": "mean", "drop_path": 0.1}},
        "objective": {"kind": "supervised", "label_smoothing": 0.1, "merge": [0, 3]},
        "optimiser": {"lr": 0.002, "layer_decay": 0.75},
    }
    pretraining = {
        "name": "pretrain",
        "model": {"architecture": "mae", "config": masked},
        "objective": {"kind": "mae"},
        "optimiser": {"lr": 0.002, "betas": [0.9, 0.95]},
        "loop": {**loop},
    }
    return {
        "name": "tiny",
        "version": "0.1",
        "description": "Six flags",
        "license": "CC0-1.0",
        "seed": 3,
        "data": {"kind": "flags", **data, "renderings": 2},
        "preprocess": {"image_size": 16, "short_side": 16, "fit": "squeeze", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "phases": [
            pretraining,
            {"name": "finetune", "start": "pretrain", **labels, "loop": {**loop}},
            {"name": "short", "start": "pretrain", **labels, "loop": {**loop, "epochs": 1}},
            {"name": "scratch", "start": "pretrain@0", **labels, "loop": {**loop, "epochs": 1}},
        ],
        "release": {
            "task": "classify",
            "phase": "finetune",
            "quality": {
                "kind": "flags",
                "ladder": {"min_throughput": 1.000001, "batch_size": 2, "rounds": 3, "rungs": [{"name": "r3", "schedule": 3}]},
            },
        },
    }
