"""Starting values by which a decoder weighs by the time: the noisier a patch is, the less it counts, and the clearer, the less others do.

Two hidden units of an MLP make a gate of a channel x: GELU(b + x) − GELU(b − x) is nearly 2x · GELU'(b), all of 2x where b is large and
nothing where it is far below zero. Here b follows the logarithm of noise over signal, so that a gate passes what Wiener's filter would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import Mlp
from models.systems.diffmae.decoder import TimeEmbedding
from models.systems.diffmae.diffusion import NoiseSchedule

_SLOPE = 3.2
"""GELU' rises by 0.8 per unit where it is 1/2, the logistic function by 1/4."""
_LARGEST = 7.0
"""Logarithm of noise over signal at which gates are wide open or shut."""
_LINEAR = 0.5
"""Standard deviation of x: small, for the difference of two GELUs is linear near 0 only."""
_CONTENT_VARIANCE = 0.12
"""Variance that content adds to a token's channels, beside that of its position."""
_RIDGE = 1e-2


@dataclass(frozen=True)
class LayerNormStats:
    """The effect of a LayerNorm on the tokens of a decoder at the start."""

    centre: Tensor
    """(C,), of the channels: the mean over positions."""
    std: float

    @staticmethod
    def of(positions: Tensor) -> LayerNormStats:
        """positions (N, C)."""
        own = positions.var(dim=1, correction=0).mean().item()
        return LayerNormStats((positions - positions.mean()).mean(dim=0), math.sqrt(own + _CONTENT_VARIANCE))


@torch.no_grad()
def init_time_channel(embedding: TimeEmbedding, schedule: NoiseSchedule, channel: int) -> None:
    """Write log(noise / signal) of each time, as a gate's b, into one channel of tokens, in place, and nothing into the others."""
    alphas_bar = schedule.alphas_bar()
    wanted = ((1 - alphas_bar) / alphas_bar).log().clamp(-_LARGEST, _LARGEST) / _SLOPE
    inner, last = embedding.mlp[:-1], embedding.mlp[-1]
    assert isinstance(last, nn.Linear)
    hidden = inner(embedding.waves(torch.arange(schedule.steps)).float()).double()
    hidden = F.pad(hidden, (0, 1), value=1.0)  # (T, C + 1), the last for the bias
    products = hidden.T @ hidden + _RIDGE * torch.eye(hidden.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(products, hidden.T @ wanted).float()
    last.weight.zero_()
    last.bias.zero_()
    last.weight[channel] = weights[:-1]
    last.bias[channel] = weights[-1]


@torch.no_grad()
def init_noise_gate(mlp: Mlp, channels: Tensor, stds: Tensor, left_open: Tensor, time: int, norm: LayerNormStats) -> None:
    """Take content away from tokens, in place, as it drowns in noise.

    stds: (n,), of the channels (n,) of tokens. left_open: variances (n,) of the patches' values, in the diffusion's units.
    """
    _gate(mlp, channels, stds, -left_open.log() / _SLOPE, 1.0, time, norm, first=0)


@torch.no_grad()
def init_clean_gate(mlp: Mlp, channels: Tensor, stds: Tensor, left_open: Tensor, time: int, norm: LayerNormStats, *, first: int) -> None:
    """Take away what other patches told, in place, when the patch itself is clear. first: hidden unit from which on there is room."""
    _gate(mlp, channels, stds, left_open.log() / _SLOPE, -1.0, time, norm, first)


def _gate(mlp: Mlp, channels: Tensor, stds: Tensor, bias: Tensor, sign: float, time: int, norm: LayerNormStats, first: int) -> None:
    """As many channels as the hidden units are enough for."""
    count = min(len(channels), (mlp.fc1.out_features - first) // 2)
    channels, bias = channels[:count], bias[:count]
    scale = _LINEAR / stds[:count]  # of x, per unit of a token's channel
    shift = bias - sign * norm.centre[time]
    for number, side in enumerate((1.0, -1.0)):
        units = first + number * count + torch.arange(count)
        mlp.fc1.weight[units] = 0.0
        mlp.fc1.weight[units, time] = sign * norm.std
        mlp.fc1.weight[units, channels] = side * scale * norm.std
        mlp.fc1.bias[units] = shift - side * scale * norm.centre[channels]
        mlp.fc2.weight[:, units] = 0.0
        mlp.fc2.weight[channels, units] = -side / (2 * scale)
