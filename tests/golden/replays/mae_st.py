"""MAE-ST: pre-training on clips, the fine-tuned classifier with its parameter groups, and the views of a test."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from models.checkpoints import families, fit, read_checkpoint
from models.layers.masked_encoder import Masking
from models.media.clip_sampling import FRAME_RATE, crops, frame_indices, view_spans
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig
from models.systems.mae_st.pretraining import VideoMAEPretraining, VideoMAEPretrainingConfig
from tests.golden.case import Case, Replay
from tests.golden.replays import mae as replay_mae
from tests.golden.replays.mae import NUMBER
from training.optim import layer_decay_groups

SHORT_SIDE = 256
"""Short side in pixels of a clip of which only the centre is used."""

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)

FINE_TUNED = families()["mae_st"]

SIZES = replay_mae.SIZES | {
    "num_frames": "frames",
    "t_patch_size": "patch_frames",
    "num_classes": "classes",
    "dropout": "dropout",
    "cls_embed": "class_token",
    "sep_pos_embed": "separate_positions",
    "pred_t_dim": "predicted_frames",
}
"""Published name → ours."""


def replay(case: Case) -> Replay:
    if "num_temporal_views" in case.config:
        return _views(case)
    return _pretraining(case) if "decoder_depth" in case.config else _replay_finetuned(case)


def settings(config: dict[str, Any], model: type) -> dict[str, Any]:
    """Return fields of a model's config. They must agree with the weights; a field that a case lacks is read from the weights or has its
    default."""
    fields = {field.name for field in dataclasses.fields(model)}
    sizes = {ours: config[theirs] for theirs, ours in SIZES.items() if theirs in config and ours in fields}
    return sizes | ({"qkv_bias": not config["no_qkv_bias"]} if "no_qkv_bias" in config else {})


def load_pretraining(case: Case) -> VideoMAEPretraining:
    model = fit(read_checkpoint(case.checkpoint), families()["mae_st_pretrained"], settings(case.config, VideoMAEPretrainingConfig)).model()
    assert isinstance(model, VideoMAEPretraining)
    return model


def load_finetuned(case: Case) -> VideoMAE:
    model = fit(read_checkpoint(case.checkpoint), FINE_TUNED, settings(case.config, VideoMAEConfig)).model()
    assert isinstance(model, VideoMAE)
    return model


def _pretraining(case: Case) -> Replay:
    model, clips, noise = load_pretraining(case), case.inputs["video"], case.inputs["noise"]
    answer = model(clips, noise)
    masking = Masking.from_noise(noise, model.config.visible)
    return Replay(
        outputs={
            "loss": answer.loss,
            "pred": answer.patches,
            "mask": answer.mask,
            "target_patches": model.target_patches(clips),
            "target_frames": model.target_frames(),
            "unpatchified_pred": model.to_clips(answer.patches),
        },
        intermediates={"latent": model.encode_visible(clips, masking.ids_keep), "ids_restore": masking.ids_restore},
    )


def _replay_finetuned(case: Case) -> Replay:
    model, clips = load_finetuned(case), case.inputs["video"]
    answer = model(clips)
    times, rows, columns = model.config.grid
    places = rows * columns
    recorded = {}
    if "param_groups" in case.recorded:
        recorded["param_groups"] = _parameter_groups(model, case.recorded["param_groups"])
    return Replay(
        {"logits": answer.logits, "features": answer.features},
        {"tokens": model.patch_embed(clips).unflatten(1, (times, places))},
        recorded,
    )


def _parameter_groups(model: VideoMAE, expected: dict[str, Any]) -> dict[str, Any]:
    """Return published name → [lr_scale, weight_decay]; both decays are in the prose."""
    numbers = re.search(rf"layer_decay ({NUMBER}), weight_decay ({NUMBER})", expected["meaning"])
    assert numbers, expected["meaning"]
    groups = layer_decay_groups(model.requires_grad_(), layer_decay=float(numbers[1]), weight_decay=float(numbers[2]))
    table = {
        published: [group["lr_scale"], group["weight_decay"]]
        for group in groups
        for name in group["names"]
        for published in FINE_TUNED.table.published_names(name)
    }
    return {**expected, "table": table}


def _views(case: Case) -> Replay:
    config = case.config
    indices = []
    for total, fps, view, start, end in case.inputs["rows"].tolist():
        spans = view_spans(
            int(total),
            fps,
            frames=config["num_frames"],
            stride=config["sampling_rate"],
            views=config["num_temporal_views"],
            rate=config.get("target_fps", FRAME_RATE),
        )
        span = spans[int(view)]
        torch.testing.assert_close(torch.tensor(span), torch.tensor((start, end)), rtol=case.tolerance.rtol, atol=case.tolerance.atol)
        indices.append(frame_indices(span, int(total), config["num_frames"]))
    outputs = {"frame_idx": torch.stack(indices)}
    for name, clip in case.inputs.items():
        if name.startswith("clip_"):
            outputs |= {f"{name.replace('clip', 'crop', 1)}_{index}": crop for index, crop in enumerate(_crops(clip, config))}
    return Replay(outputs)


def _crops(clip: Tensor, config: dict[str, Any]) -> Tensor:
    """Cut (T, H, W, 3) in bytes to (crops, 3, T, S, S)."""
    size, count = config["crop_size"], config["num_spatial_crops"]
    mean, std = torch.tensor(config.get("mean", MEAN)), torch.tensor(config.get("std", STD))
    normalised = ((clip / 255 - mean) / std).permute(3, 0, 1, 2)
    return crops(normalised, short_side=SHORT_SIDE if count == 1 else size, size=size, count=count)
