"""PHALP (arXiv 2112.04477): key tables of its pose predictor and its appearance network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, Family, KeyTable, resize_and_crop, shape_of
from models.people import checkpoint as people
from models.people.smpl import CHECKPOINT_PREFIX

POSE_KEYS = people.with_encoder_prefix(
    {
        **people.SHARED_KEYS,
        **people.transformer_keys("transformer1", "blocks"),
        **people.transformer_keys("transformer2", "blocks_after"),
        "pos_embedding_learned1": "pos_embed",
        "pos_embedding_learned2": "pos_embed_after",
    }
)

UNUSED_KEYS = ("pos_embedding", "pe", "transformer")
"""Weights in the files that the published computation does not use: a fixed table, its double, and a transformer."""


def tidy_pose(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    def used(key: str) -> bool:
        name = key.removeprefix(people.ENCODER_PREFIX)
        return name not in UNUSED_KEYS and not name.startswith("transformer.") and not key.startswith(CHECKPOINT_PREFIX)

    return {key: value for key, value in published.items() if used(key)}


def pose_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the fields of PosePredictorConfig; `heads` must be set if heads do not have 64 channels."""
    _, frames, _ = shape_of(weights, "pos_embed", 3)
    shape_of(weights, "pos_embed_after", 3)
    return {"frames": frames, **people.shared_fields(weights, settings)}


POSE = Family(
    name="phalp_pose",
    architecture="phalp_pose",
    table=KeyTable(POSE_KEYS),
    config=pose_config,
    preprocess=resize_and_crop(1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    clean=tidy_pose,
    dropped_note="a table of positions and a transformer that nothing uses",
    sidecar_fields=("mean_std",),
    wrapper="state_dict",
)

APPEARANCE_KEYS = {
    "backbone.*.*": "backbone.*.*",
    "backbone.layer{i}.{i}.*.*": "backbone.layer{i}.{i}.*.*",
    "backbone.layer{i}.{i}.downsample.{i}.*": "backbone.layer{i}.{i}.downsample.{i}.*",
    "texture_head.decoder.*.*": "texture_head.decoder.*.*",
    "texture_head.decoder.*.*.*": "texture_head.decoder.*.*.*",
    "encoding_head.*.*": "encoding_head.*.*",
}

PART_PREFIXES = ("backbone.", "texture_head.", "encoding_head.", "smpl_head.", "smplx_head.")
UNUSED_PREFIXES = ("backbone.conv1m.", "encoding_head.t_", "smpl_head.", "smplx_head.")
"""Prefixes of a first layer for four channels, a decoder of codes, and a body regressor, which HMR2 replaces."""
FILE_PREFIX = "hmar."
"""Prefix of every name in the file. The published loader cuts off five characters without reading them."""


def tidy_appearance(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the five characters before every name, and unused weights."""
    weights = {key if key.startswith(PART_PREFIXES) else key[len(FILE_PREFIX) :]: value for key, value in published.items()}
    return {key: value for key, value in weights.items() if not key.startswith(UNUSED_PREFIXES)}


def complete_appearance(published: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{FILE_PREFIX}{key}": value for key, value in published.items()}


def appearance_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    shape_of(weights, "texture_head.decoder.conv_img.weight", 4)
    return {}


APPEARANCE = Family(
    name="phalp_appearance",
    architecture="phalp_appearance",
    table=KeyTable(APPEARANCE_KEYS),
    config=appearance_config,
    preprocess=resize_and_crop(1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    head_fields=(),
    clean=tidy_appearance,
    completed=complete_appearance,
    dropped_note="a first layer for four channels, a decoder of codes and a body regressor",
)
