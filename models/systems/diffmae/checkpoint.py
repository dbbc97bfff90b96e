"""DiffMAE (arXiv 2304.03283). Nothing was published: the container `diffmae-v1` and its keys are our own and describe a model completely.

A torch file is {"format", "config", "model"}; a safetensors file has the weights, and format and config (as JSON) in its metadata. The
user chooses the masked patches: there are no classes, no labels, no preprocessing beyond ImageNet's mean and standard deviation.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from models.checkpoints.family import (
    AUTOENCODER_HEADS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConfigFields,
    Family,
    KeyTable,
    UnlikeFamily,
    depth_of,
    mlp_ratio_of,
    published_heads,
    resize_and_crop,
    shape_of,
    side_of,
)
from models.systems.diffmae.decoder import DecoderType
from models.systems.diffmae.model import DiffMAEConfig
from models.systems.vit.checkpoint import ENCODER_KEYS

FORMAT = "diffmae-v1"

KEYS = {
    **ENCODER_KEYS,
    "norm.*": "norm.*",
    "noise_embed.*": "noise_embed.*",
    "decoder_pos_embed": "decoder_pos_embed",
    "time_embed.mlp.{i}.*": "time_embed.mlp.{i}.*",
    "decoder_embed.*": "decoder_embed.*",
    "decoder_blocks.{i}.norm_cross.*": "decoder_blocks.{i}.norm_cross.*",
    "decoder_blocks.{i}.norm_ctx.*": "decoder_blocks.{i}.norm_ctx.*",
    "decoder_blocks.{i}.cross_attn.q.*": "decoder_blocks.{i}.cross_attn.q.*",
    "decoder_blocks.{i}.cross_attn.kv.*": "decoder_blocks.{i}.cross_attn.kv.*",
    "decoder_blocks.{i}.cross_attn.proj.*": "decoder_blocks.{i}.cross_attn.proj.*",
    "decoder_blocks.{i}.norm_self.*": "decoder_blocks.{i}.norm_self.*",
    "decoder_blocks.{i}.attn.qkv.*": "decoder_blocks.{i}.attn.qkv.*",
    "decoder_blocks.{i}.attn.proj.*": "decoder_blocks.{i}.attn.proj.*",
    "decoder_blocks.{i}.norm_mlp.*": "decoder_blocks.{i}.norm_mlp.*",
    "decoder_blocks.{i}.mlp.fc1.*": "decoder_blocks.{i}.mlp.fc1.*",
    "decoder_blocks.{i}.mlp.fc2.*": "decoder_blocks.{i}.mlp.fc2.*",
    "decoder_norm.*": "decoder_norm.*",
    "decoder_pred.*": "decoder_pred.*",
    "decoder_pred_clip.*": "decoder_pred_clip.*",
}

# field of the container's config → ours
FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "decoder_embed_dim": "decoder_width",
    "decoder_depth": "decoder_depth",
    "decoder_num_heads": "decoder_heads",
    "decoder_type": "decoder_type",
    "connection": "connection",
    "time_freq_dim": "time_width",
    "norm_pix": "normalise_patches",
    "prediction": "target",
    "clip_dim": "clip_width",
    "clip_weight": "clip_weight",
    "num_frames": "frames",
    "t_patch_size": "patch_frames",
}
SCHEDULE_FIELDS = {
    "kind": "kind",
    "T": "steps",
    "rho": "rho",
    "rho_mode": "rho_mode",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
}
TIME_EMBED = {"add": True, "none": False}
CONFIG_KEYS = frozenset({*FIELDS, "time_embed", "schedule", "video"})
OF_CLIPS = ("num_frames", "t_patch_size")
"""Fields that are ignored without `video`."""


def fields_of(described: Mapping[str, Any]) -> ConfigFields:
    """Convert a container's config to fields of DiffMAEConfig; missing ones keep their defaults. Raises ValueError if it is invalid."""
    _require_known(described, CONFIG_KEYS)
    clips = described.get("video", "num_frames" in described)
    fields = {FIELDS[key]: value for key, value in described.items() if key in FIELDS and (clips or key not in OF_CLIPS)}
    if clips:
        fields = {"frames": 16, "patch_frames": 2, **fields}
    if "time_embed" in described:
        if described["time_embed"] not in list(TIME_EMBED):
            raise ValueError(f"time_embed: {described['time_embed']!r}; it can be {' or '.join(TIME_EMBED)}")
        fields["time_embed"] = TIME_EMBED[described["time_embed"]]
    if "schedule" in described:
        if not isinstance(described["schedule"], Mapping):
            raise ValueError(f"schedule: {described['schedule']!r}; it has the fields {', '.join(SCHEDULE_FIELDS)}")
        fields["schedule"] = schedule_fields_of(described["schedule"])
    return fields


def schedule_fields_of(described: Mapping[str, Any]) -> ConfigFields:
    """Convert a container's schedule to fields of NoiseSchedule. Raises ValueError if one is unknown."""
    _require_known(described, SCHEDULE_FIELDS, "schedule: ")
    return {SCHEDULE_FIELDS[key]: value for key, value in described.items()}


def _require_known(described: Mapping[str, Any], allowed: Collection[str], prefix: str = "") -> None:
    unknown = sorted(str(key) for key in described if key not in allowed)
    if unknown:
        raise ValueError(f"{prefix}{', '.join(unknown)}: unknown; the fields are {', '.join(sorted(allowed))}")


def describe(config: DiffMAEConfig) -> dict[str, Any]:
    """Return the container's complete config, ready for JSON. Raises ValueError if the container cannot express it."""
    usual = DiffMAEConfig()
    for name in ("channels", "norm_eps", "mean", "std", "proportional_attention"):
        value, only = getattr(config, name), getattr(usual, name)
        if value != only:
            raise ValueError(f"{name}: {value}; a {FORMAT} file has no place for anything but {only}")
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    described = {key: values[ours] for key, ours in FIELDS.items()}
    optional = [key for key in ("clip_dim", "num_frames") if described[key] is None]
    if "clip_dim" in optional:
        del described["clip_dim"], described["clip_weight"]
    if "num_frames" in optional:
        del described["num_frames"], described["t_patch_size"]
    schedule = {key: values["schedule"][ours] for key, ours in SCHEDULE_FIELDS.items()}
    video = {} if config.frames is None else {"video": True}
    return {**described, "time_embed": "add" if config.time_embed else "none", "schedule": schedule, **video}


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer fields from keys and shapes of a file without description. Images are assumed square; clips need `frames` and `image_size`."""
    embed = weights.get("patch_embed.proj.weight")
    clip = embed is not None and embed.dim() == 5
    width, channels, *patch = shape_of(weights, "patch_embed.proj.weight", 5 if clip else 4)
    small, _ = shape_of(weights, "noise_embed.weight", 2)
    _, positions, _ = shape_of(weights, "pos_embed", 3)
    hidden, _ = shape_of(weights, "blocks.0.mlp.fc1.weight", 2)
    if clip and not {"frames", "image_size"} <= set(settings):
        raise UnlikeFamily("its position table does not separate time from space: set frames and image_size")
    crosses, joins = "decoder_blocks.0.cross_attn.q.weight" in weights, "decoder_blocks.0.attn.qkv.weight" in weights
    fields: ConfigFields = {
        "patch_size": patch[-1],
        "patch_frames": patch[0] if clip else 1,
        "channels": channels,
        "width": width,
        "depth": depth_of(weights, "blocks"),
        "mlp_ratio": mlp_ratio_of(hidden, width),
        "decoder_width": small,
        "decoder_depth": depth_of(weights, "decoder_blocks"),
        "decoder_type": DecoderType.JOINT if not crosses else DecoderType.CROSS_SELF if joins else DecoderType.CROSS,
        "time_embed": "time_embed.mlp.0.weight" in weights,
    }
    if "image_size" not in settings:
        fields["image_size"] = (patch[-1] * side_of(positions - 1),) * 2
    if fields["time_embed"]:
        fields["time_width"] = shape_of(weights, "time_embed.mlp.0.weight", 2)[1]
    if "decoder_pred_clip.weight" in weights:
        fields["clip_width"] = shape_of(weights, "decoder_pred_clip.weight", 2)[0]
    heads = published_heads(width)
    if heads is not None:
        fields["heads"] = heads
    if small == 512:
        fields["decoder_heads"] = 16
    return fields


def fields_from_description(description: Mapping[str, Any]) -> ConfigFields:
    """Read fields of DiffMAEConfig from a file's description, {} if it is not ours. Raises ValueError if it is invalid."""
    file_format, config = description.get("format"), description.get("config", {})
    if not str(file_format).startswith("diffmae"):
        return {}
    if file_format != FORMAT or not isinstance(config, Mapping):
        raise ValueError(f"it is not a {FORMAT} file: its format is {file_format}, its config a {type(config).__name__}")
    return fields_of(config)


FAMILY = Family(
    name="diffmae",
    architecture="diffmae",
    table=KeyTable(KEYS),
    config=config,
    head_fields=AUTOENCODER_HEADS,
    described=fields_from_description,
    preprocess=resize_and_crop(1.0, IMAGENET_MEAN, IMAGENET_STD),
    describe=lambda config: {"format": FORMAT, "config": describe(config)},
)
