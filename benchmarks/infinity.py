"""The same network, with equal weights, served by infinity: how `benchmarks.words` starts it.

A pair of MAWS' kind is a ViT and an XLM-R with a projection each, VisionTextDualEncoder in `transformers`. That pools by a further layer:
the identity here. In XLM-R's a tanh follows, which small numbers pass unchanged.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peers import Peer
from models.bundle import TOKENIZER_FILE, Bundle

MODEL = "words"
REQUIREMENTS = ("infinity-emb[torch,server]", "aiohttp", "pillow", "torchvision", "transformers<5")
"""Versions that pip takes together; the extra `vision` brings models that are not served here."""
SMALL = 1e-3
"""Factor before the tanh: the square of what it is given, a third of which is its relative error, stays below float32's resolution."""
VISION = {
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
TEXT = {
    "attn.proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Ours → theirs, in a block; `attn.qkv` is three layers there."""
OUTSIDE = {
    "vision.cls_token": "vision_model.embeddings.cls_token",
    "vision.pos_embed": "vision_model.embeddings.position_embeddings",
    "vision.patch_embed.proj.weight": "vision_model.embeddings.patch_embeddings.projection.weight",
    "vision.patch_embed.proj.bias": "vision_model.embeddings.patch_embeddings.projection.bias",
    "vision.norm.weight": "vision_model.layernorm.weight",
    "vision.norm.bias": "vision_model.layernorm.bias",
    "text.token_embed.weight": "text_model.embeddings.word_embeddings.weight",
    "text.pos_embed.weight": "text_model.embeddings.position_embeddings.weight",
    "text.embed_norm.weight": "text_model.embeddings.LayerNorm.weight",
    "text.embed_norm.bias": "text_model.embeddings.LayerNorm.bias",
    "logit_scale": "logit_scale",
}


def peer(folder: Path) -> Peer:
    """Return infinity as a peer that serves a folder which `write_model` has filled."""
    options = ("--device", "cpu", "--engine", "torch", "--dtype", "float32", "--no-bettertransformer", "--no-compile", "--no-model-warmup")
    named = ("--model-id", str(folder), "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", "{port}")
    command = ("infinity_emb", "v2", *named, *options)
    return Peer("infinity", REQUIREMENTS, command, "/embeddings", "", {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"})


def image_body(jpeg: bytes) -> bytes:
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return json.dumps({"model": MODEL, "input": [uri], "modality": "image", "encoding_format": "base64"}).encode()


def text_body(texts: list[str]) -> bytes:
    return json.dumps({"model": MODEL, "input": texts, "encoding_format": "base64"}).encode()


def write_model(bundle: Bundle, folder: Path) -> None:
    """Write a pair of architecture `maws_clip` as `transformers` reads it."""
    folder.mkdir(parents=True)
    config, spec = bundle.spec.config, bundle.spec
    assert spec.text is not None and spec.preprocess is not None
    save_file(_weights(load_file(bundle.weights_path), config), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(bundle.path / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    side = spec.preprocess.image_size
    images = {
        "processor_class": "VisionTextDualEncoderProcessor",
        "image_processor_type": "CLIPImageProcessorFast",
        "size": {"shortest_edge": spec.preprocess.short_side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": list(spec.preprocess.mean),
        "image_std": list(spec.preprocess.std),
    }
    texts = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": spec.text.length}
    names = {"bos_token": "<s>", "eos_token": "</s>", "processor_class": "VisionTextDualEncoderProcessor"}
    for name, content in (
        ("config", _config(config, spec.text.length)),
        ("preprocessor_config", images),
        ("tokenizer_config", texts | names),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))


def _config(config: Mapping[str, Any], length: int) -> dict[str, Any]:
    vision = {
        "model_type": "vit",
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "hidden_size": config["width"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "intermediate_size": int(config["width"] * config["mlp_ratio"]),
        "layer_norm_eps": config["norm_eps"],
        "pooler_act": "linear",
        "pooler_output_size": config["width"],
    }
    text = {
        "model_type": "xlm-roberta",
        "vocab_size": config["vocabulary"],
        "max_position_embeddings": config["positions"],
        "hidden_size": config["text_width"],
        "num_hidden_layers": config["text_depth"],
        "num_attention_heads": config["text_heads"],
        "intermediate_size": config["text_hidden"],
        "layer_norm_eps": config["text_norm_eps"],
        "type_vocab_size": 1,
        "pad_token_id": config["padding"],
    }
    kind = {"model_type": "vision-text-dual-encoder", "architectures": ["VisionTextDualEncoderModel"], "torch_dtype": "float32"}
    return {**kind, "projection_dim": config["joint_width"], "max_length": length, "vision_config": vision, "text_config": text}


def _weights(ours: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    theirs = {OUTSIDE[name]: tensor for name, tensor in ours.items() if name in OUTSIDE}
    for tower, names in (("vision", VISION), ("text", TEXT)):
        for name, tensor in ours.items():
            if name.startswith(f"{tower}.blocks."):
                theirs |= _block_weights(name, tensor, names)
    for tower, width, factor in (("vision", config["width"], 1.0), ("text", config["text_width"], SMALL)):
        theirs[f"{tower}_model.pooler.dense.weight"] = factor * torch.eye(width)
        theirs[f"{tower}_model.pooler.dense.bias"] = torch.zeros(width)
    theirs["text_model.embeddings.token_type_embeddings.weight"] = torch.zeros(1, config["text_width"])
    theirs["visual_projection.weight"] = ours["vision_projection"].T
    theirs["text_projection.weight"] = ours["text_projection"].T
    return {name: tensor.contiguous() for name, tensor in theirs.items()}


def _block_weights(name: str, tensor: Tensor, names: Mapping[str, str]) -> dict[str, Tensor]:
    """vision.blocks.3.attn.qkv.weight → vision_model.encoder.layer.3.attention.attention.{query,key,value}.weight"""
    tower, _, number, *inner, kind = name.split(".")
    layer, block = ".".join(inner), f"{tower}_model.encoder.layer.{number}"
    if layer != "attn.qkv":
        return {f"{block}.{names[layer]}.{kind}": tensor}
    attention = f"{block}.attention.{'attention' if tower == 'vision' else 'self'}"
    return {f"{attention}.{part}.{kind}": rows for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True)}
