"""Key tables of MAViL (arXiv 2212.08071) and its parent Audio-MAE (arXiv 2207.06405).

One file holds both halves: keys of the video half have `_v` after their first part.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from torch import Tensor

from models.checkpoints.family import (
    AUTOENCODER_HEADS,
    ConfigFields,
    Family,
    KeyTable,
    UnlikeFamily,
    block_fields,
    decoder_fields,
    depth_of,
    shape_of,
    side_of,
    squeeze,
)
from models.systems.vit.checkpoint import BLOCK_KEYS, ENCODER_KEYS, MASKED_DECODER_KEYS

WINDOW_KEYS = {
    "decoder_blocks.{i}.attn.tau": "decoder_blocks.{i}.attn.tau",
    "decoder_blocks.{i}.attn.meta_mlp.fc1.*": "decoder_blocks.{i}.attn.meta_mlp.fc1.*",
    "decoder_blocks.{i}.attn.meta_mlp.fc2.*": "decoder_blocks.{i}.attn.meta_mlp.fc2.*",
}


def video_key(key: str) -> str:
    first, dot, rest = key.partition(".")
    return f"{first}_v{dot}{rest}"


def expand_to_halves(keys: Mapping[str, str]) -> dict[str, str]:
    """Expand the key table of one half to both halves."""
    return {
        **{upstream_key: f"audio.{key}" for upstream_key, key in keys.items()},
        **{video_key(upstream_key): f"video.{key}" for upstream_key, key in keys.items()},
    }


FUSION_KEYS = {theirs.replace("blocks.", "blocks_av."): ours.replace("blocks.", "blocks_av.") for theirs, ours in BLOCK_KEYS.items()}

KEYS = {
    **expand_to_halves(ENCODER_KEYS),
    **FUSION_KEYS,
    **{f"fc_norm_{head}.*": f"fc_norm.{head}.*" for head in ("av", "a", "v")},
    **{f"head_{head}.*": f"head.{head}.*" for head in ("av", "a", "v")},
}

PRETRAINING_KEYS = {
    **expand_to_halves({**ENCODER_KEYS, **MASKED_DECODER_KEYS}),
    **FUSION_KEYS,
}

AUDIO_MAE_KEYS = {**ENCODER_KEYS, **MASKED_DECODER_KEYS, **WINDOW_KEYS}

VGGSOUND_CLASSES = 309
"""Number of classes of VGGSound, whose clips have one label each; AudioSet's have several."""

DEFAULT_FRAMES, DEFAULT_MEL_BINS = 8, 128
"""Size of the published inputs: position tables do not show how time and space divide them. Other sizes are set by hand."""


PRETRAINING_ONLY = ("norm", "mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred")


def drop_pretraining(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Drop the parts of pre-training that a classifier's file may still contain."""
    if not any(key.startswith("head_") for key in published):
        return published
    unused = {*PRETRAINING_ONLY, *map(video_key, PRETRAINING_ONLY)}
    return {key: value for key, value in published.items() if key.partition(".")[0] not in unused}


def towers_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the fields of TowersConfig; `frames` and `mel_bins` may be set by hand."""
    width, _, audio_patch_size, _ = shape_of(weights, "audio.patch_embed.proj.weight", 4)
    _, _, patch_frames, patch_size, _ = shape_of(weights, "video.patch_embed.proj.weight", 5)
    _, positions, _ = shape_of(weights, "video.pos_embed", 3)
    frames = settings.get("frames", DEFAULT_FRAMES)
    times = max(frames // patch_frames, 1)
    if (positions - 1) % times:
        fits = f"--set frames={gcd(positions - 1, times) * patch_frames}"
        raise UnlikeFamily(
            f"its position table has {positions - 1} patches, which {times} times do not divide; set the number of frames, as in {fits}"
        )
    audio_weights = {name.removeprefix("audio."): value for name, value in weights.items() if name.startswith("audio.")}
    return {
        **spectrogram_fields(weights, "audio.pos_embed", audio_patch_size, settings),
        "audio_patch_size": audio_patch_size,
        "frames": frames,
        "image_size": patch_size * side_of((positions - 1) // times),
        "patch_frames": patch_frames,
        "patch_size": patch_size,
        "width": width,
        "fusion_depth": depth_of(weights, "blocks_av"),
        **block_fields(audio_weights, width),
    }


def spectrogram_fields(weights: Mapping[str, Tensor], table: str, patch_size: int, settings: ConfigFields) -> ConfigFields:
    """Infer the number of times of a spectrogram from a position table, and return it with the number of mel bins."""
    _, positions, _ = shape_of(weights, table, 3)
    mel_bins = settings.get("mel_bins", DEFAULT_MEL_BINS)
    bins = max(mel_bins // patch_size, 1)
    if (positions - 1) % bins:
        fits = f"--set mel_bins={gcd(positions - 1, bins) * patch_size}"
        raise UnlikeFamily(
            f"its position table has {positions - 1} patches, which {bins} rows of mel bins do not divide; set the number of mel bins, "
            f"as in {fits}"
        )
    return {"audio_frames": (positions - 1) // bins * patch_size, "mel_bins": mel_bins}


def config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    fields = towers_config(weights, settings)
    head = next((name for name in ("head.av.weight", "head.a.weight", "head.v.weight") if name in weights), None)
    if head is not None:
        fields["classes"] = weights[head].shape[0]
        fields["multi_label"] = fields["classes"] != VGGSOUND_CLASSES
    return fields


def pretraining_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    fields = towers_config(weights, settings)
    audio_values, _ = shape_of(weights, "audio.decoder_pred.weight", 2)
    video_values, _ = shape_of(weights, "video.decoder_pred.weight", 2)
    return {**fields, **decoder_fields(weights, "audio."), "predict_features": audio_values == video_values == fields["width"]}


def audio_mae_config(weights: Mapping[str, Tensor], settings: ConfigFields) -> ConfigFields:
    """Infer the fields of AudioMAEConfig, except the size of windows."""
    width, channels, patch_size, _ = shape_of(weights, "patch_embed.proj.weight", 4)
    if channels != 1:
        raise UnlikeFamily(f"its patches have {channels} channels where spectrograms have 1")
    fields = {
        **spectrogram_fields(weights, "pos_embed", patch_size, settings),
        "patch_size": patch_size,
        "width": width,
        **decoder_fields(weights),
        **block_fields(weights, width),
    }
    return fields if "decoder_blocks.0.attn.tau" in weights else {**fields, "window": None}


FAMILY = Family(
    name="mavil",
    architecture="mavil",
    table=KeyTable(KEYS),
    config=config,
    defaults={"proportional_attention": False},
    preprocess=squeeze,
    clean=drop_pretraining,
    assumed=("frames", "mel_bins"),
)

PRETRAINING = Family(
    name="mavil_pretrained",
    architecture="mavil_pretraining",
    table=KeyTable(PRETRAINING_KEYS),
    config=pretraining_config,
    preprocess=squeeze,
    assumed=("frames", "mel_bins"),
    head_fields=AUTOENCODER_HEADS,
)

AUDIO_MAE = Family(
    name="audio_mae",
    architecture="audio_mae",
    table=KeyTable(AUDIO_MAE_KEYS),
    config=audio_mae_config,
    preprocess=squeeze,
    assumed=("mel_bins",),
    head_fields=AUTOENCODER_HEADS,
)
