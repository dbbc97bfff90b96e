"""Prediction of the poses of PHALP's tracks in the next frame (arXiv 2112.04477)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.people.heads import POSE_FEATURE, HeadOutputs, Heads, TrackFeatureDims, build_encoder
from models.people.track_batch import (
    KeyMask,
    MaskedBlock,
    MeanStd,
    TokenMask,
    TrackBatch,
    normalise_pose,
    pose_statistics,
    require_statistics,
)


@dataclass(frozen=True)
class PosePredictorConfig:
    """Config of the pose predictor. A checkpoint's sizes are in the `pose_predictor.yaml` next to its weights; the defaults are LART's."""

    frames: int = 125
    """Number of frames, a multiple of `conv_stride`."""
    pose: TrackFeatureDims = POSE_FEATURE
    depth: int = 16
    heads: int = 16
    head_dim: int = 64
    hidden: int = 512
    actions: int = 60
    regressor_hidden: int = 1024
    conv_stride: int = 5
    conv_padding: int = 1
    dropout: float = 0.1
    drop_path: float = 0.4
    mean_std: MeanStd | None = None
    """Means and standard deviations of the pose's first values, from the published `mean_std.npy`; None: passed with every call."""

    def __post_init__(self) -> None:
        require_statistics(self.mean_std, self.pose.values)
        if self.frames % self.conv_stride:
            raise ValueError(f"frames: {self.frames} is not a multiple of conv_stride {self.conv_stride}")


@dataclass(frozen=True)
class PoseForecast:
    tokens: Tensor
    """(B, T, C)."""
    head_outputs: HeadOutputs
    """(B, T, ·)."""
    class_tokens: Tensor
    """(B, 1, C), the same for every input."""


class PosePredictor(nn.Module):
    """Transformer over one person's time line, convolutions over time as a bottleneck, and one block more."""

    def __init__(self, config: PosePredictorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.pose.width
        self.pose_encoder = build_encoder(config.pose, layers=2)
        self.mask_token = nn.Parameter(torch.randn(width))
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, config.frames, width))
        self.pos_embed_after = nn.Parameter(torch.randn(1, config.frames, width))
        self.blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.blocks_after = nn.ModuleList([self._block()])
        self.conv_en = nn.Conv1d(width, width, 7, config.conv_stride, config.conv_padding)
        self.conv_de = nn.ConvTranspose1d(width, width, 7, config.conv_stride, config.conv_padding)
        self.heads = Heads(width, config.actions, config.regressor_hidden)

    def _block(self) -> MaskedBlock:
        config = self.config
        return MaskedBlock(
            config.pose.width, config.heads, config.head_dim, config.hidden, dropout=config.dropout, drop_path=config.drop_path
        )

    def forward(self, tracks: TrackBatch) -> PoseForecast:
        """Complete tracks (B, T, 1, ·) of one person each, T = frames; tokens that were not detected are predicted."""
        masked = TokenMask.from_missing(tracks).masked.flatten(1)  # (B, T)
        x = torch.where(masked.unsqueeze(2), self.mask_token, self.pose_encoder(tracks.pose.squeeze(2)))
        x, key_mask = x + self.pos_embed, KeyMask.from_masked(masked)
        for block in self.blocks:
            x = block(x, key_mask)
        x = self.conv_de(self.conv_en(x.mT)).mT + self.pos_embed_after
        for block in self.blocks_after:
            x = block(x)
        return PoseForecast(x, self.heads(x), self.class_token.expand(len(x), -1, -1))


def predict_pose(model: PosePredictor, times: Tensor, poses: Tensor, gaps: Tensor, mean_std: Tensor | None = None) -> Tensor:
    """Predict the pose vectors (N, 229) of tracks in the next frame.

    times: (N, K) of their last detections; poses: (N, K, 229) of the same, raw; gaps: (N,), frames since the last one. mean_std: (2, 1, K),
    as for `normalise_pose`; None for the model's own. Raises ValueError if it has none.

    Every track is read at the frame of the first one, as in the published code, with which the published distances were fitted.
    """
    frames = model.config.frames
    time_index = (times - times[:, :1]).long()  # (N, K)
    read_index = min(int(time_index[0, -1] + gaps[0]) + 1, frames - 1)
    statistics = pose_statistics(model.config.mean_std) if mean_std is None else mean_std
    normalised = normalise_pose(poses, statistics.to(poses.device)).to(model.mask_token.dtype)
    tracks = _place_on_time_line(normalised, time_index.clamp(max=frames - 1), frames)
    predicted: Tensor = model(tracks).head_outputs.pose  # (N, T, 229)
    return predicted[:, read_index]


def _place_on_time_line(poses: Tensor, time_index: Tensor, frames: int) -> TrackBatch:
    """Place poses (N, K, 229) at their indices (N, K) on a time line; the last one at an index counts."""
    count, steps = time_index.shape
    order = torch.arange(steps, device=time_index.device).expand(count, -1)
    latest = torch.full((count, frames), -1, device=time_index.device).scatter_reduce(1, time_index, order, "amax")  # (N, T)
    line = poses.gather(1, latest.clamp(min=0).unsqueeze(2).expand(-1, -1, poses.shape[2]))
    detected = (latest >= 0).to(poses.dtype)[:, :, None, None]
    return TrackBatch(line.unsqueeze(2), detected)
