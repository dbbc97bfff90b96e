"""MAE fine-tuned (arXiv 2111.06377): the mean of the patches by default, the class token where there is a `norm`.

Those that were trained with ToMe have the same keys; they want `proportional_attention=true`.
"""

from __future__ import annotations

from models.bundle import Preprocess
from models.published import timm
from models.published.family import IMAGENET_MEAN, IMAGENET_STD, Family, vit_config
from models.published.key_table import KeyTable

KEYS = {
    **timm.KEYS,
    "fc_norm.*": "fc_norm.*",
}


def preprocess(size: int) -> Preprocess:
    """Above 224 the whole short side is used."""
    short_side = int(size / (224 / 256)) if size <= 224 else size
    return Preprocess(image_size=size, short_side=short_side, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)


FAMILY = Family(
    name="mae",
    architecture="vit",
    table=KeyTable(KEYS),
    config=vit_config,
    defaults={"proportional_attention": False},
    preprocess=preprocess,
)
