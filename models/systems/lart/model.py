"""LART (arXiv 2304.01199), action recognition from tracks: a transformer over all frames and people of a clip.

Tracks of any length are read in overlapping windows, of which only the middles are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from models.people.heads import POSE_FEATURE, HeadOutputs, Heads, TrackFeatureDims, build_encoder
from models.people.track_batch import KeyMask, MaskedBlock, MeanStd, TokenMask, TrackBatch, require_statistics

JOINTS_3D = TrackFeatureDims(135, 256, 128)
HIERA = TrackFeatureDims(2048, 512, 256)
MVIT = TrackFeatureDims(1152, 512, 256)
"""Appearance features of the two published video networks."""


@dataclass(frozen=True)
class LARTConfig:
    """The defaults are the published LART on Hiera features, 51.8 M parameters. `LART_MVIT` and `LART_POSE` are the others."""

    frames: int = 125
    pose: TrackFeatureDims = POSE_FEATURE
    joints: TrackFeatureDims | None = JOINTS_3D
    appearance: TrackFeatureDims | None = HIERA
    depth: int = 16
    heads: int = 16
    head_dim: int = 64
    hidden: int = 512
    actions: int = 60
    """60 of AVA's 80 classes are evaluated."""
    kinetics_classes: int = 400
    times: int = 250
    people: int = 10
    """Rows of the position table, a bound on frames and people of a clip."""
    regressor_hidden: int = 1024
    conv_stride: int = 5
    conv_padding: int = 1
    dropout: float = 0.1
    drop_path: float = 0.4
    mask_ratio: float = 0.4
    """Fraction of the detected tokens that training masks."""
    mean_std: MeanStd | None = None
    """Means and standard deviations of the pose's first values, from the published `mean_std.npy`; None: given with every track."""

    @property
    def width(self) -> int:
        return self.pose.width + sum(feature.width for feature in (self.joints, self.appearance) if feature)

    def __post_init__(self) -> None:
        require_statistics(self.mean_std, self.pose.values)
        if self.width % 4:
            raise ValueError(f"the features' widths add up to {self.width}, not to a multiple of 4 as the position table needs")
        if self.frames > self.times:
            raise ValueError(f"frames: {self.frames} where the position table has {self.times}")


LART_HIERA = LARTConfig()
LART_MVIT = LARTConfig(appearance=MVIT)
LART_POSE = LARTConfig(joints=None, appearance=None)

PUBLISHED: Mapping[str, LARTConfig] = {"lart_hiera": LART_HIERA, "lart_mvit": LART_MVIT, "lart_pose": LART_POSE}


@dataclass(frozen=True)
class LARTOutput:
    tokens: Tensor
    """(B, T, P, C)."""
    reading: HeadOutputs
    """(B, T, P, ·)."""
    class_tokens: Tensor
    """(B, P, C), the same for every input."""
    kinetics: Tensor
    """(B, P, kinetics_classes), from the class tokens alone: no published recipe trains it."""


class LART(nn.Module):
    """The network. `conv_en` and `conv_de` are in the published files and not used."""

    def __init__(self, config: LARTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pose_encoder = build_encoder(config.pose, layers=2)
        self.joint_encoder = None if config.joints is None else build_encoder(config.joints, layers=3)
        self.appearance_encoder = None if config.appearance is None else build_encoder(config.appearance, layers=3)
        self.mask_token = nn.Parameter(torch.randn(width))
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(position_table(width, config.times, config.people))
        self.blocks = nn.ModuleList(
            MaskedBlock(width, config.heads, config.head_dim, config.hidden, dropout=config.dropout, drop_path=config.drop_path)
            for _ in range(config.depth)
        )
        self.heads = Heads(width, config.actions, config.regressor_hidden)
        self.kinetics = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.kinetics_classes)
        )
        self.conv_en = nn.Conv1d(width, width, 7, config.conv_stride, config.conv_padding)
        self.conv_de = nn.ConvTranspose1d(width, width, 7, config.conv_stride, config.conv_padding)

    def forward(self, tracks: TrackBatch, hidden: TokenMask | None = None) -> LARTOutput:
        """Score the actions of tracks. hidden: None for missing detections; in training, for `mask_ratio` of the detections."""
        tokens = self.tokens(tracks, hidden)
        batch, _, people, _ = tokens.shape
        class_tokens = self.class_token.expand(batch, people, -1)
        return LARTOutput(tokens, self.heads(tokens), class_tokens, self.kinetics(class_tokens))

    def tokens(self, tracks: TrackBatch, hidden: TokenMask | None = None) -> Tensor:
        """Return the tokens (B, T, P, C) that the heads read."""
        hidden = hidden or self._hide(tracks)
        x = self._embed(tracks)  # (B, T, P, C)
        x = torch.where(hidden.masked, self.mask_token, x)
        batch, times, people, width = x.shape
        x = (x + self._positions(times, people)).flatten(1, 2)  # (B, T · P, C), people fastest
        valid = None if hidden.valid is None else hidden.valid.view(batch, -1)
        visible = KeyMask.from_masked(hidden.masked.view(batch, -1), valid)
        for block in self.blocks:
            x = block(x, visible)
        return x.view(batch, times, people, width)

    def _hide(self, tracks: TrackBatch) -> TokenMask:
        if not self.training:
            return TokenMask.from_missing(tracks)
        return TokenMask.from_noise(tracks, self.config.mask_ratio, torch.rand(tracks.detected.shape, device=tracks.detected.device))

    def _embed(self, tracks: TrackBatch) -> Tensor:
        parts = [self.pose_encoder(tracks.pose)]
        for name, layers, values in (
            ("joints", self.joint_encoder, tracks.joints),
            ("appearance", self.appearance_encoder, tracks.appearance),
        ):
            if layers is None:
                continue
            if values is None:
                raise ValueError(f"{name}: this model needs them for every person and frame")
            parts.append(layers(values))
        return torch.cat(parts, dim=-1)

    def _positions(self, times: int, people: int) -> Tensor:
        """Return the position table of a clip, (T, P, C)."""
        if times > self.config.times or people > self.config.people:
            raise ValueError(
                f"{times} frames of {people} people where this model has positions for {self.config.times} of {self.config.people}"
            )
        return self.pos_embed[:, :times, :people].permute(1, 2, 0)


def position_table(width: int, times: int, people: int) -> Tensor:
    """Return a fixed table, (width, times, people): half of the channels encode the person, half the time; sine and cosine alternate."""
    half = width // 2
    # on the CPU, as `sincos_line`
    frequencies = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.float64, device="cpu") / half)

    def axis(length: int) -> Tensor:
        angles = torch.arange(length, dtype=torch.float64, device="cpu") * frequencies.unsqueeze(1)  # (half / 2, length)
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)  # (half, length)

    person, time = axis(people).unsqueeze(1).expand(-1, times, -1), axis(times).unsqueeze(2).expand(-1, -1, people)
    return torch.cat([person, time]).float()


def predict_track(model: LART, track: TrackBatch, *, step: int = 32, margin: int = 32, windows_at_once: int = 64) -> HeadOutputs:
    """Predict for each frame of one track: (1, L, P, ·) → outputs of the heads (1, L, P, ·). Raises ValueError if windows are too long.

    Each window yields `step` frames and has up to `margin` more on both sides; positions start at 0 in each. Windows are batched:
    the time is that of L / step windows, the memory that of `windows_at_once`. The rows of a track that were not detected are filled in.
    """
    frames, length = model.config.frames, track.pose.shape[1]
    if 2 * margin + step >= frames:
        raise ValueError(f"windows of {step} frames with {margin} on both sides do not fit into {frames} frames")
    first = torch.arange(0, length, step, device=track.pose.device)  # the first frame that each window yields
    tokens = [_encode_middles(model, track, batch, step, margin) for batch in first.split(windows_at_once)]  # type: ignore[no-untyped-call]
    outputs: HeadOutputs = model.heads(torch.cat(tokens)[:length].unsqueeze(0))
    return outputs


def _encode_middles(model: LART, track: TrackBatch, first: Tensor, step: int, margin: int) -> Tensor:
    """Encode `step` frames from each of `first` on, (windows · step, P, C); those beyond the track's end mean nothing."""
    length = track.pose.shape[1]
    start, end = (first - margin).clamp(min=0), (first + step + margin).clamp(max=length)
    rows = start.unsqueeze(1) + torch.arange(model.config.frames, device=first.device)  # (windows, T)
    tokens = model.tokens(_windows(track, rows.clamp(max=length - 1), rows < end.unsqueeze(1)))  # (windows, T, P, C)
    middle = (first - start).unsqueeze(1) + torch.arange(step, device=first.device)  # (windows, step), inside each window
    return tokens.gather(1, middle[:, :, None, None].expand(-1, -1, *tokens.shape[2:])).flatten(0, 1)


def _windows(track: TrackBatch, rows: Tensor, inside: Tensor) -> TrackBatch:
    """Cut one track into windows (windows, T, P, ·); frames outside count as not detected."""
    arrays = {field.name: getattr(track, field.name) for field in fields(track)}
    windows = replace(track, **{name: values[0, rows] for name, values in arrays.items() if values is not None})
    return replace(windows, detected=windows.detected * inside[:, :, None, None])
