"""MAWS: vision towers with and without a head, the pair with its text tower, and the preparation of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.bundle import Preprocess
from models.clip import unit
from models.maws import MAWSClip, MAWSClipConfig
from models.published import FAMILIES, fit, read_checkpoint
from models.registry import normalise
from models.vit import ViTConfig
from server.media.images import to_model_size
from tests.golden.case import Case, Replayed


def replay(case: Case) -> Replayed:
    if "clip" in case.config:
        return answers(case, load(case))
    return _preprocessing(case) if "interpolation" in case.config else _vision(case)


def _vision(case: Case) -> Replayed:
    config = case.config
    assert config["pool"] == "class token"
    settings = ViTConfig(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        classes=config["num_classes"],
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
        norm_eps=config["norm_eps"],
    )
    found = fit(read_checkpoint(case.checkpoint), FAMILIES["maws"], vars(settings))
    assert found.perfect, found.complaint()
    return Replayed({"output": found.model()(case.inputs["img"]).logits})


def answers(case: Case, model: MAWSClip) -> Replayed:
    dtype = next(model.parameters()).dtype
    pixels, tokens = case.inputs["img"].to(dtype), case.inputs["tokens"].long()
    groups = case.config["class_groups"]
    rows = torch.tensor([row for group in groups for row in group])
    classes = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    images, texts, logits = model.encode_images(pixels), model.encode_texts(tokens), model(pixels, tokens)
    classifier = model.class_features(tokens[rows], classes, len(groups))
    outputs = {
        "image_features_raw": images,
        "text_features_raw": texts,
        "image_features": unit(images),
        "text_features": unit(texts),
        "logits": logits,
        "probs": logits.softmax(dim=-1),
        "logit_scale": model.scale(),
        "class_embeddings": classifier,
        "zeroshot_logits": unit(images) @ classifier.T,
    }
    return Replayed(outputs)


def load(case: Case) -> MAWSClip:
    config = clip_config(case.config)
    found = fit(read_checkpoint(case.checkpoint), FAMILIES["maws_clip"], vars(config))
    assert found.perfect, found.complaint()
    model: Any = found.model()
    return model  # type: ignore[no-any-return]


def clip_config(config: dict[str, Any]) -> MAWSClipConfig:
    vision, text, clip = config["vision"], config["text"], config["clip"]
    assert text["post_norm"] and text["activation"] == "exact gelu" and not vision["num_classes"]
    assert clip["vision_encoder_width"] == vision["embed_dim"] and clip["text_encoder_width"] == text["embedding_dim"]
    return MAWSClipConfig(
        image_size=vision["img_size"],
        patch_size=vision["patch_size"],
        width=vision["embed_dim"],
        depth=vision["depth"],
        heads=vision["num_heads"],
        mlp_ratio=vision["mlp_ratio"],
        norm_eps=vision["norm_eps"],
        vocabulary=text["vocab_size"],
        positions=text["max_seq_len"],
        padding=text["padding_idx"],
        text_width=text["embedding_dim"],
        text_depth=text["num_encoder_layers"],
        text_heads=text["num_attention_heads"],
        text_hidden=text["ffn_dimension"],
        text_norm_eps=text["norm_eps"],
        joint_width=clip["embed_dim"],
    )


def _preprocessing(case: Case) -> Replayed:
    config = case.config
    assert config["interpolation"] == "bicubic, PIL antialiased"
    outputs = {}
    for name, picture in case.inputs.items():
        image = Image.fromarray(picture.numpy().astype(np.uint8))
        for fit_, prefix in (("crop", "crop"), ("squeeze", "squash")):
            outputs[f"{prefix}{name.removeprefix('img')}"] = prepared(image, config, fit_)
    return Replayed(outputs)


def prepared(image: Image.Image, config: dict[str, Any], fit_: Any) -> Tensor:
    """(3, S, S), normalised."""
    size = config["size"]
    preprocess = Preprocess(image_size=size, short_side=size, fit=fit_, mean=config["mean"], std=config["std"])
    pixels = torch.from_numpy(to_model_size(image, preprocess, 10**9).copy())
    return normalise(pixels.unsqueeze(0), preprocess, torch.float32)[0]
