"""timm's vision transformers (AugReg and kin), whose parameter names are ours."""

from __future__ import annotations

from models.published.family import Family, resize_and_crop, vit_config
from models.published.key_table import KeyTable

BLOCK = {
    "blocks.{i}.norm1.*": "blocks.{i}.norm1.*",
    "blocks.{i}.attn.qkv.*": "blocks.{i}.attn.qkv.*",
    "blocks.{i}.attn.proj.*": "blocks.{i}.attn.proj.*",
    "blocks.{i}.norm2.*": "blocks.{i}.norm2.*",
    "blocks.{i}.mlp.fc1.*": "blocks.{i}.mlp.fc1.*",
    "blocks.{i}.mlp.fc2.*": "blocks.{i}.mlp.fc2.*",
}

ENCODER = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj.*": "patch_embed.proj.*",
    **BLOCK,
}

DECODER = {
    "decoder_embed.*": "decoder_embed.*",
    "decoder_pos_embed": "decoder_pos_embed",
    **{f"decoder_{theirs}": f"decoder_{ours}" for theirs, ours in BLOCK.items()},
    "decoder_norm.*": "decoder_norm.*",
    "decoder_pred.*": "decoder_pred.*",
}
"""What MAE and those built on it add."""

KEYS = {
    **ENCODER,
    "norm.*": "norm.*",
    "head.*": "head.*",
}

FAMILY = Family(
    name="timm",
    architecture="vit",
    table=KeyTable(KEYS),
    config=vit_config,
    defaults={"proportional_attention": True},
    preprocess=resize_and_crop(256 / 224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)
