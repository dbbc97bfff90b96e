"""DeiT (arXiv 2012.12877), also distilled, and the DeiT models that were trained with ToMe."""

from __future__ import annotations

from models.published.family import IMAGENET_MEAN, IMAGENET_STD, Family, resize_and_crop, vit_config
from models.published.key_table import KeyTable
from models.vit import published as timm

KEYS = {
    **timm.KEYS,
    "dist_token": "dist_token",
    "head_dist.*": "head_dist.*",
}

FAMILY = Family(
    name="deit",
    architecture="vit",
    table=KeyTable(KEYS),
    config=vit_config,
    defaults={"proportional_attention": True},
    preprocess=resize_and_crop(256 / 224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
)
