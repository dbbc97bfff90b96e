"""MAWS: vision towers with and without a head, the pair with its text tower, and the preparation of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.bundle_schema import Preprocess
from models.checkpoints import families, fit, read_checkpoint
from models.layers.forward import normalise
from models.systems.image_text.dual_encoder import unit_vectors
from models.systems.image_text.maws import MAWSClip, MAWSClipConfig
from models.systems.vit.model import ViTConfig
from server.media.images import to_model_size
from tests.golden.case import Case, Replay


def replay(case: Case) -> Replay:
    if "clip" in case.config:
        return answers(case, load(case))
    return _vision(case) if "patch_size" in case.config else _preprocessing(case)


def _vision(case: Case) -> Replay:
    config = case.config
    assert config.get("pool", "class token") == "class token"
    settings = ViTConfig(classes=config.get("num_classes", 0), qkv_bias=config.get("qkv_bias", True), **vision_fields(config))
    found = fit(read_checkpoint(case.checkpoint), families()["maws"], vars(settings))
    assert found.perfect, found.mismatch_message()
    return Replay({"output": found.model()(case.inputs["img"]).logits})


def vision_fields(vision: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a ViT or a pair; those that a case lacks are as in timm, which truncates the width of the MLP."""
    width = vision["embed_dim"]
    return {
        "image_size": vision["img_size"],
        "patch_size": vision["patch_size"],
        "width": width,
        "depth": vision["depth"],
        "heads": vision["num_heads"],
        "mlp_ratio": int(width * vision.get("mlp_ratio", 4.0)) / width,
        "norm_eps": vision.get("norm_eps", 1e-6),
    }


def answers(case: Case, model: MAWSClip) -> Replay:
    dtype = next(model.parameters()).dtype
    pixels, tokens = case.inputs["img"].to(dtype), case.inputs["tokens"].long()
    images, texts, logits = model.encode_images(pixels), model.encode_texts(tokens), model(pixels, tokens)
    outputs = {
        "image_features_raw": images,
        "text_features_raw": texts,
        "image_features": unit_vectors(images),
        "text_features": unit_vectors(texts),
        "logits": logits,
        "probs": logits.softmax(dim=-1),
        "logit_scale": model.scale(),
    }
    groups = case.config.get("class_groups")
    if groups:
        rows = torch.tensor([row for group in groups for row in group])
        classes = torch.tensor([number for number, group in enumerate(groups) for _ in group])
        classifier = model.class_features(tokens[rows], classes, len(groups))
        outputs |= {"class_embeddings": classifier, "zeroshot_logits": unit_vectors(images) @ classifier.T}
    return Replay(outputs)


def load(case: Case) -> MAWSClip:
    config = clip_config(case.config)
    found = fit(read_checkpoint(case.checkpoint), families()["maws_clip"], vars(config))
    assert found.perfect, found.mismatch_message()
    model: Any = found.model()
    return model  # type: ignore[no-any-return]


def clip_config(config: dict[str, Any]) -> MAWSClipConfig:
    vision, text, clip = config["vision"], config["text"], config["clip"]
    assert text.get("post_norm", True) and text.get("activation", "exact gelu") == "exact gelu"
    assert vision.get("qkv_bias", True) and not vision.get("num_classes", 0)
    return MAWSClipConfig(
        **vision_fields(vision),
        vocabulary=text["vocab_size"],
        positions=text.get("max_seq_len", 514),
        padding=text.get("padding_idx", 1),
        text_width=text["embedding_dim"],
        text_depth=text["num_encoder_layers"],
        text_heads=text["num_attention_heads"],
        text_hidden=text["ffn_dimension"],
        text_norm_eps=text.get("norm_eps", 1e-5),
        joint_width=clip["embed_dim"],
    )


def _preprocessing(case: Case) -> Replay:
    config = case.config
    assert config.get("interpolation", "bicubic").startswith("bicubic")
    outputs = {}
    for name, picture in case.inputs.items():
        image = Image.fromarray(picture.numpy().astype(np.uint8))
        for fit_, prefix in (("crop", "crop"), ("squeeze", "squash")):
            outputs[f"{prefix}{name.removeprefix('img')}"] = prepare_image(image, config, fit_)
    return Replay(outputs)


def prepare_image(image: Image.Image, config: dict[str, Any], fit_: Any) -> Tensor:
    """Return the normalised image: (3, S, S)."""
    size = config["size"]
    preprocess = Preprocess(image_size=size, short_side=size, fit=fit_, mean=config["mean"], std=config["std"])
    pixels = torch.from_numpy(to_model_size(image, preprocess, 10**9).copy())
    return normalise(pixels.unsqueeze(0), preprocess, torch.float32)[0]
