"""Small image-text dual encoders with a vocabulary of a few words and fixed random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from tempfile import TemporaryDirectory
from typing import Any

import torch

from models.bundle import Bundle, BundleSpec
from models.bundle_schema import Preprocess
from models.systems.image_text.add_tokenizer import add_tokenizer
from models.systems.image_text.cit import CiT, CiTConfig, VisionTower
from models.systems.image_text.flip import FLIP, FLIPConfig
from models.systems.image_text.maws import MAWSClip, MAWSClipConfig
from tests.support.bundles.vit import UNSEALED, seal

WORDS = ("a", "photo", "of", "the", "dog", "cat", "car", "red", "blue", "green", "one", "two", "eat", "house")
VOCABULARY = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS, *ascii_lowercase[1:], *digits, *punctuation]
VOCABULARY += [f"##{letter}" for letter in (*ascii_lowercase, *digits)]
TOWER = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "joint_width": 24}
TEXT = {"vocabulary": len(VOCABULARY), "text_width": 16, "text_depth": 2, "text_heads": 2, "text_hidden": 32}
SMALL: dict[str, tuple[type[Any], Any]] = {
    "cit": (CiT, CiTConfig(**TOWER, **TEXT, positions=40, tower=VisionTower.AUGREG)),
    "maws_clip": (MAWSClip, MAWSClipConfig(**TOWER, **TEXT, positions=40)),
    "flip": (FLIP, FLIPConfig(**TOWER, **TEXT, text_length=16)),
}
"""Architecture → its class and config."""


def write_tiny_pair(
    root: Path,
    name: str = "words",
    version: str = "1",
    architecture: str = "cit",
    *,
    tokenizer: bool = True,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    **extra: Any,
) -> Bundle:
    """32 x 32 pixels, 17 tokens, vectors of 24 numbers. more: of its spec, such as a ladder."""
    network, config = SMALL[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(config)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        model.logit_scale.data.fill_(3.0)
    spec = BundleSpec(
        name=name,
        version=version,
        task="zero-shot",
        architecture=architecture,
        config=dataclasses.asdict(config),
        preprocess=Preprocess(image_size=32, short_side=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        license="CC0-1.0",
        weights=UNSEALED,
        **extra,
    )
    bundle = seal(root, spec, model.state_dict())
    if not tokenizer:
        return bundle
    with TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.txt")
        vocabulary.write_text("".join(f"{piece}\n" for piece in VOCABULARY))
        return add_tokenizer(bundle, vocabulary, templates)
