"""LART (arXiv 2304.01199): what people do, from their tracks: a transformer over the frames and the people of a clip together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.people.masked_attention import MaskedBlock, Visible, hidden_at_random
from models.people.smpl import Person, Regressor

POSE = 229
"""24 rotations row by row, 10 betas, the place before the camera with its depth divided by 200."""


@dataclass(frozen=True)
class Feature:
    """What one kind of input becomes: its values, the width of the layers between, its channels of the token."""

    values: int
    hidden: int
    width: int


@dataclass(frozen=True)
class LARTConfig:
    """The defaults are the published LART on Hiera features, 51.8 M parameters. `LART_MVIT` and `LART_POSE` are the others."""

    frames: int = 125
    pose: Feature = Feature(POSE, POSE, 128)
    joints: Feature | None = Feature(135, 256, 128)
    appearance: Feature | None = Feature(2048, 512, 256)
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
    """Share of the detected tokens that training hides."""

    @property
    def width(self) -> int:
        return self.pose.width + sum(feature.width for feature in (self.joints, self.appearance) if feature)

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"the features' widths add up to {self.width}, which is no multiple of 4 as the position table needs")
        if self.frames > self.times:
            raise ValueError(f"frames: {self.frames} where the position table has {self.times}")


LART_HIERA = LARTConfig()
LART_MVIT = LARTConfig(appearance=Feature(1152, 512, 256))
LART_POSE = LARTConfig(joints=None, appearance=None)

PUBLISHED: Mapping[str, LARTConfig] = {"lart_hiera": LART_HIERA, "lart_mvit": LART_MVIT, "lart_pose": LART_POSE}


@dataclass(frozen=True)
class Tracks:
    """Clips of people; all arrays are (B, T, P, ·)."""

    pose: Tensor
    """(B, T, P, 229), normalised: see `normalise_pose`."""
    detected: Tensor
    """(B, T, P, 1) of 0 and 1: the person was observed in the frame."""
    joints: Tensor | None = None
    """(B, T, P, 135): 45 joints in 3D, the camera added, not normalised."""
    appearance: Tensor | None = None
    """(B, T, P, A), not normalised."""
    masked: Tensor | None = None
    """(B, T, P, 1) of 0 and 1: tokens to hide although they were detected; None: none."""


@dataclass(frozen=True)
class Hidden:
    """Which tokens the network does not see, (B, T, P, 1) of bool each."""

    masked: Tensor
    valid: Tensor | None
    """Tokens that take part in attention at all; None: all of them."""

    @classmethod
    def missing(cls, tracks: Tracks) -> Hidden:
        """At inference: what was not detected."""
        absent = tracks.detected == 0
        return cls(absent if tracks.masked is None else absent | (tracks.masked != 0), None)

    @classmethod
    def at_random(cls, tracks: Tracks, ratio: float, noise: Tensor) -> Hidden:
        """In training: of each clip's detected tokens the share `ratio` with the lowest noise (B, T, P, 1)."""
        detected = tracks.detected != 0
        drawn = hidden_at_random(detected.flatten(1), ratio, noise.flatten(1)).view_as(detected)
        return cls(drawn if tracks.masked is None else drawn | (tracks.masked != 0), detected)


@dataclass(frozen=True)
class Reading:
    """What the heads tell of each token."""

    actions: Tensor
    """(..., actions), before the sigmoid."""
    person: Person
    location: Tensor
    """(..., 3), before the camera; its depth is divided by 200."""

    @property
    def pose(self) -> Tensor:
        """(..., 229), raw."""
        return torch.cat([self.person.pose, self.location], dim=-1)


@dataclass(frozen=True)
class Recognised:
    tokens: Tensor
    """(B, T, P, C)."""
    reading: Reading
    """(B, T, P, ·)."""
    class_tokens: Tensor
    """(B, P, C), the same for every input."""
    kinetics: Tensor
    """(B, P, kinetics_classes), from the class tokens alone: no published recipe trains it."""


class Heads(nn.Module):
    """Of LART and of PHALP's pose predictor."""

    def __init__(self, width: int, actions: int, regressor_hidden: int) -> None:
        super().__init__()
        self.actions = nn.Linear(width, actions)
        self.regressor = Regressor(width, regressor_hidden)
        self.location = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, tokens: Tensor) -> Reading:
        """(..., C)."""
        return Reading(self.actions(tokens), self.regressor(tokens), self.location(tokens))


class LART(nn.Module):
    """`conv_en` and `conv_de` are in the published files and not used."""

    def __init__(self, config: LARTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pose_encoder = encoder(config.pose, layers=2)
        self.joint_encoder = None if config.joints is None else encoder(config.joints, layers=3)
        self.appearance_encoder = None if config.appearance is None else encoder(config.appearance, layers=3)
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

    def forward(self, tracks: Tracks, hidden: Hidden | None = None) -> Recognised:
        """hidden: None for what was not detected. The tracks stay as they are."""
        tokens = self.tokens(tracks, hidden)
        batch, _, people, _ = tokens.shape
        class_tokens = self.class_token.expand(batch, people, -1)
        return Recognised(tokens, self.heads(tokens), class_tokens, self.kinetics(class_tokens))

    def tokens(self, tracks: Tracks, hidden: Hidden | None = None) -> Tensor:
        """Without the heads: (B, T, P, C)."""
        hidden = hidden or Hidden.missing(tracks)
        x = self._embed(tracks)  # (B, T, P, C)
        x = torch.where(hidden.masked, self.mask_token, x)
        batch, times, people, width = x.shape
        x = (x + self._positions(times, people)).flatten(1, 2)  # (B, T · P, C), people fastest
        valid = None if hidden.valid is None else hidden.valid.view(batch, -1)
        visible = Visible.of(hidden.masked.view(batch, -1), valid)
        for block in self.blocks:
            x = block(x, visible)
        return x.view(batch, times, people, width)

    def _embed(self, tracks: Tracks) -> Tensor:
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
        """→ (T, P, C)."""
        if times > self.config.times or people > self.config.people:
            raise ValueError(
                f"{times} frames of {people} people where this model has positions for {self.config.times} of {self.config.people}"
            )
        return self.pos_embed[:, :times, :people].permute(1, 2, 0)


def encoder(feature: Feature, layers: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    widths = [feature.values, *[feature.hidden] * (layers - 1), feature.width]
    steps: list[nn.Module] = []
    for before, after in pairwise(widths):
        steps += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def position_table(width: int, times: int, people: int) -> Tensor:
    """(width, times, people): the first half of the channels encodes the person, the second the time; sine and cosine take turns."""
    half = width // 2
    frequencies = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)

    def axis(length: int) -> Tensor:
        angles = torch.arange(length, dtype=torch.float64) * frequencies.unsqueeze(1)  # (half / 2, length)
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)  # (half, length)

    person, time = axis(people).unsqueeze(1).expand(-1, times, -1), axis(times).unsqueeze(2).expand(-1, -1, people)
    return torch.cat([person, time]).float()


def normalise_pose(pose: Tensor, mean_std: Tensor) -> Tensor:
    """(..., 229) by the means and deviations (2, 1, K) of the first K values, as `mean_std.npy` holds them; the others stay."""
    mean, std = mean_std[:, 0].to(pose.dtype)
    rest = pose.shape[-1] - len(mean)
    mean, std = torch.cat([mean, mean.new_zeros(rest)]), torch.cat([std, std.new_ones(rest)])
    return (pose - mean) / (std + 1e-10)
