"""LART (arXiv 2304.01199). The body mesh in its files is not imported."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, Family, KeyTable, resize_and_crop, shape_of
from models.people.checkpoint import ENCODER_PREFIX, SHARED_KEYS, feature_fields, shared_fields, transformer_keys, with_encoder_prefix
from models.people.smpl import CHECKPOINT_PREFIX
from models.systems.lart.model import LARTConfig

KEYS = with_encoder_prefix(
    {
        **SHARED_KEYS,
        **transformer_keys("transformer", "blocks"),
        "pos_embedding": "pos_embed",
        "joint_encoder.{i}.*": "joint_encoder.{i}.*",
        "apperance_encoder.{i}.*": "appearance_encoder.{i}.*",
        "action_head_kinetics.{i}.*": "kinetics.{i}.*",
    }
)


def tidy(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove torch.compile's prefix and the body mesh. Files have the position table twice; if the two differ `pe` counts, since the
    published code loads buffers last."""
    weights = {key.replace("_orig_mod.", ""): value for key, value in published.items()}
    weights = {key: value for key, value in weights.items() if not key.startswith(CHECKPOINT_PREFIX)}
    for prefix in (ENCODER_PREFIX, ""):
        if f"{prefix}pe" in weights:
            weights[f"{prefix}pos_embedding"] = weights.pop(f"{prefix}pe")
    return weights


def add_pe(published: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**published, f"{ENCODER_PREFIX}pe": published[f"{ENCODER_PREFIX}pos_embedding"]}


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer fields of LARTConfig from weights. `heads` must be set if they do not have 64 channels."""
    _, times, people = shape_of(weights, "pos_embed", 3)
    kinetics, _ = shape_of(weights, "kinetics.4.weight", 2)
    joints, appearance = (feature_fields(weights, name) if f"{name}.0.weight" in weights else None for name in OPTIONAL)
    return {
        "frames": min(LARTConfig.frames, times),
        "times": times,
        "people": people,
        "joints": joints,
        "appearance": appearance,
        "kinetics_classes": kinetics,
        **shared_fields(weights, settings),
    }


OPTIONAL = ("joint_encoder", "appearance_encoder")


FAMILY = Family(
    name="lart",
    architecture="lart",
    table=KeyTable(KEYS),
    config=config,
    preprocess=resize_and_crop(1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    clean=tidy,
    completed=add_pe,
    dropped_note="the body mesh, which is licensed",
    sidecar_fields=("mean_std",),
    wrapper="state_dict",
)
