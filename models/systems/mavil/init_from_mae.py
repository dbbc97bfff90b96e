"""Initial weights of MAViL's pre-training, from a published masked autoencoder of images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.position_embeddings import repeat_in_time
from models.systems.mavil.model import TowersConfig

LEFT_OUT = ("decoder_pred.",)
"""An image's patch has not as many values as a clip's."""


def video_from_pictures(pictures: Mapping[str, Tensor], config: TowersConfig) -> dict[str, Tensor]:
    """An MAE's weights → those of the video half and of the fusion blocks, by our names.

    The kernel is repeated over time, not scaled; positions are the same at all times; each fusion block is a copy of the last block.
    """
    times, _, _ = config.video_grid
    weights: dict[str, Tensor] = {}
    for name, value in pictures.items():
        if name.startswith(LEFT_OUT):
            continue
        if name == "patch_embed.proj.weight":
            value = value.unsqueeze(2).repeat(1, 1, config.patch_frames, 1, 1)  # (C, 3, u, p, p)
        elif name in ("pos_embed", "decoder_pos_embed"):
            value = repeat_in_time(value, times)
        weights[f"video.{name}"] = value
    last = f"blocks.{config.depth - 1}."
    for number in range(config.fusion_depth):
        copies = {name.replace(last, f"blocks_av.{number}.", 1): value.clone() for name, value in pictures.items() if name.startswith(last)}
        weights |= copies
    return weights


def audio_from_video(video: Mapping[str, Tensor], config: TowersConfig) -> dict[str, Tensor]:
    """The video half of such weights → the audio half, by our names: an option of the published code.

    The kernel is summed over colours and time; the positions of one time are stretched bicubically to times and mel bins.
    """
    weights = {}
    for name, value in video.items():
        half, _, rest = name.partition(".")
        if half != "video" or rest.startswith(LEFT_OUT):
            continue
        if rest == "patch_embed.proj.weight":
            value = value.sum(dim=(1, 2)).unsqueeze(1)  # (C, 1, p, p)
        elif rest in ("pos_embed", "decoder_pos_embed"):
            value = _stretched(value, config)
        weights[f"audio.{rest}"] = value
    return weights


def _stretched(table: Tensor, config: TowersConfig) -> Tensor:
    """(1, 1 + t·h·w, C) → (1, 1 + times·bins, C)."""
    times, rows, columns = config.video_grid
    places = table[:, 1:].unflatten(1, (times, rows, columns))[:, 0].permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]  # (1, C, h, w)
    stretched = F.interpolate(places, size=config.audio_grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], stretched.flatten(2).transpose(1, 2)], dim=1)
