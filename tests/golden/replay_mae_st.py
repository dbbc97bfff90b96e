"""MAE-ST: pre-training on clips, the fine-tuned classifier with its parameter groups, and the views of a test."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from models.layers.masking import Masking
from models.published import FAMILIES, fit, read_checkpoint
from models.video_mae import VideoMAE
from models.video_mae_pretraining import VideoMAEPretraining
from models.video_views import crops, frames_within, view_spans
from tests.golden.case import Case, Replayed
from training.optim import layer_decay_groups

SHORT_SIDE = 256
"""Where only the centre is looked at."""

FINE_TUNED = FAMILIES["mae_st"]


def replay(case: Case) -> Replayed:
    if "num_temporal_views" in case.config:
        return _views(case)
    return _pretraining(case) if "decoder_depth" in case.config else _finetuned(case)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Those that both models have. What weights tell is checked against what they are told to be."""
    return {
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "frames": config["num_frames"],
        "patch_frames": config["t_patch_size"],
        "channels": config["in_chans"],
        "width": config["embed_dim"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "qkv_bias": not config["no_qkv_bias"],
        "norm_eps": config["norm_eps"],
        "class_token": config["cls_embed"],
        "separate_positions": config["sep_pos_embed"],
    }


def load_pretraining(case: Case) -> VideoMAEPretraining:
    config = case.config
    settings = _settings(config) | {
        "decoder_width": config["decoder_embed_dim"],
        "decoder_depth": config["decoder_depth"],
        "decoder_heads": config["decoder_num_heads"],
        "predicted_frames": config["pred_t_dim"],
        "mask_ratio": config["mask_ratio"],
        "normalise_targets": config["norm_pix_loss"],
    }
    model = fit(read_checkpoint(case.checkpoint), FAMILIES["mae_st_pretrained"], settings).model()
    assert isinstance(model, VideoMAEPretraining)
    return model


def load_finetuned(case: Case) -> VideoMAE:
    settings = _settings(case.config) | {"classes": case.config["num_classes"], "dropout": case.config["dropout"]}
    model = fit(read_checkpoint(case.checkpoint), FINE_TUNED, settings).model()
    assert isinstance(model, VideoMAE)
    return model


def _pretraining(case: Case) -> Replayed:
    model, clips, noise = load_pretraining(case), case.inputs["video"], case.inputs["noise"]
    answer = model(clips, noise)
    masking = Masking.by_noise(noise, model.config.visible)
    return Replayed(
        outputs={
            "loss": answer.loss,
            "pred": answer.patches,
            "mask": answer.mask,
            "target_patches": model.target_patches(clips),
            "target_frames": model.target_frames(),
            "unpatchified_pred": model.to_clips(answer.patches),
        },
        intermediates={"latent": model.encode_visible(clips, masking.kept), "ids_restore": masking.restore},
    )


def _finetuned(case: Case) -> Replayed:
    model, clips = load_finetuned(case), case.inputs["video"]
    answer = model(clips)
    times, places = model.config.grid
    recorded = {}
    if "param_groups" in case.recorded:
        recorded["param_groups"] = _parameter_groups(model, case.recorded["param_groups"])
    return Replayed(
        {"logits": answer.logits, "features": answer.features},
        {"tokens": model.patch_embed(clips).unflatten(1, (times, places))},
        recorded,
    )


def _parameter_groups(model: VideoMAE, expected: dict[str, Any]) -> dict[str, Any]:
    """Published name → [lr_scale, weight_decay]; both decays stand in the prose."""
    numbers = re.search(r"layer_decay ([\d.]+), weight_decay ([\d.]+)", expected["meaning"])
    assert numbers, expected["meaning"]
    groups = layer_decay_groups(model.requires_grad_(), layer_decay=float(numbers[1]), weight_decay=float(numbers[2]))
    table = {
        published: [group["lr_scale"], group["weight_decay"]]
        for group in groups
        for name in group["names"]
        for published in FINE_TUNED.table.published_names(name)
    }
    return {**expected, "table": table}


def _views(case: Case) -> Replayed:
    config = case.config
    indices = []
    for total, fps, view, start, end in case.inputs["rows"].tolist():
        spans = view_spans(
            int(total),
            fps,
            frames=config["num_frames"],
            stride=config["sampling_rate"],
            views=config["num_temporal_views"],
            rate=config["target_fps"],
        )
        span = spans[int(view)]
        torch.testing.assert_close(torch.tensor(span), torch.tensor((start, end)), rtol=case.tolerance.rtol, atol=case.tolerance.atol)
        indices.append(frames_within(span, int(total), config["num_frames"]))
    outputs = {"frame_idx": torch.stack(indices)}
    for name in ("wide", "tall"):
        if f"clip_{name}" in case.inputs:
            outputs |= {f"crop_{name}_{index}": crop for index, crop in enumerate(_crops(case.inputs[f"clip_{name}"], config))}
    return Replayed(outputs)


def _crops(clip: Tensor, config: dict[str, Any]) -> Tensor:
    """(T, H, W, 3) in bytes → (crops, 3, T, S, S)."""
    size, count = config["crop_size"], config["num_spatial_crops"]
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    normalised = ((clip / 255 - mean) / std).permute(3, 0, 1, 2)
    return crops(normalised, short_side=SHORT_SIDE if count == 1 else size, size=size, count=count)
