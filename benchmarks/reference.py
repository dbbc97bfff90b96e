"""Inputs of the serving benchmarks: the reference bundle, the null bundles and pictures, all made from fixed seeds."""

from __future__ import annotations

import io
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import bundle
from models.bundle import Bundle, BundleSpec
from models.bundle_schema import FileDigest, Preprocess

NAME, VERSION = "reference", "1"
PICTURE_SIZE = (500, 375)
CLASSES = 1000


def make_bundle(root: Path) -> Bundle:
    """ViT-S/16 at 224, 1000 classes, random weights of seed 0: its answers mean nothing, its cost is that of a trained one."""
    import torch

    from models.systems.vit.model import ViT, ViTConfig

    config = ViTConfig(width=384, heads=6, classes=CLASSES)
    torch.manual_seed(0)
    model = ViT(config)
    spec = _spec(NAME, "vit", asdict(config), [f"class {index}" for index in range(CLASSES)], image_size=224)
    return write(root, spec, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})


def make_null_bundle(root: Path, name: str, milliseconds: float, *, image_size: int = 16, **overrides: Any) -> Bundle:
    """Write a bundle whose batches take a set time whatever their size, and whose images stay small.

    It shows the cost of everything but the network. image_size: of the images in the queue. overrides: further fields of its config, such
    as `steps`.
    """
    config = {"milliseconds": milliseconds, "classes": 10, "tokens": 197, **overrides}
    spec = _spec(name, "null", config, [f"class {index}" for index in range(10)], image_size=image_size)
    return write(root, spec, {})


def _spec(name: str, architecture: str, config: dict[str, Any], labels: list[str], *, image_size: int) -> BundleSpec:
    return BundleSpec(
        name=name,
        version=VERSION,
        task="classify",
        architecture=architecture,
        config=config,
        preprocess=Preprocess(image_size=image_size, short_side=image_size * 8 // 7, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        labels=labels,
        license="CC0-1.0",
        description="Random weights for benchmarks",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )


def write(root: Path, spec: BundleSpec, tensors: dict[str, Any]) -> Bundle:
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / bundle.WEIGHTS_FILE
        save_file(tensors, weights)
        return bundle.write(root, spec, weights, overwrite=True)


def write_pictures(folder: Path, count: int = 64) -> None:
    """JPEGs of 500 × 375 pixels and 40-100 KB, different from each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        (folder / f"{seed:03}.jpg").write_bytes(_jpeg(_noise(seed, PICTURE_SIZE), quality=90))


def write_small_pictures(folder: Path, count: int = 16, size: tuple[int, int] = (32, 24)) -> None:
    """JPEGs for the null bundles, by default of 32 × 24 pixels and about 1 KB."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        (folder / f"{seed:03}.jpg").write_bytes(_jpeg(_noise(seed, size), quality=85))


def _noise(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Octaves of coloured noise, weaker as they get finer, as in photographs. (H, W, 3)"""
    generator = np.random.default_rng(seed)
    picture = np.full((size[1], size[0], 3), 128.0)
    for octave in range(1, 9):
        cells = (min(2**octave * 4 // 3, size[0]), min(2**octave, size[1]))
        for channel in range(3):
            coarse = Image.fromarray(generator.normal(size=(cells[1], cells[0])).astype(np.float32))
            picture[..., channel] += 70 * octave**-1.2 * np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    return picture.clip(0, 255).astype(np.uint8)


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
