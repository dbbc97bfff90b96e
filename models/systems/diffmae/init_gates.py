"""Initialisation of MLPs as gates over time: the noisier a patch is, the less it counts, and the clearer, the less others do.

Two hidden units of an MLP form a gate of a channel x: GELU(b + x) − GELU(b − x) is nearly 2x · GELU'(b), 2x if b is large and 0 if it is
far below zero. Here b follows the logarithm of noise over signal, so that a gate passes as much as a Wiener filter would.
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
"""Slope of GELU' where it is 1/2 (0.8 per unit), over that of the logistic function (1/4)."""
_MAX_LOG_RATIO = 7.0
"""Logarithm of noise over signal at which gates are wide open or shut."""
_LINEAR = 0.5
"""Standard deviation of x: small, since the difference of two GELUs is linear near 0 only."""
_CONTENT_VARIANCE = 0.12
"""Variance that content adds to a token's channels, in addition to that of its position."""
_RIDGE = 1e-2


@dataclass(frozen=True)
class LayerNormStats:
    """The effect of a LayerNorm on the tokens of a decoder at the start."""

    centre: Tensor
    """(C,), of the channels: the mean over positions."""
    std: float

    @staticmethod
    def from_positions(positions: Tensor) -> LayerNormStats:
        """Compute them from the position table (N, C)."""
        variance = positions.var(dim=1, correction=0).mean().item()
        return LayerNormStats((positions - positions.mean()).mean(dim=0), math.sqrt(variance + _CONTENT_VARIANCE))


@torch.no_grad()
def init_time_channel(embedding: TimeEmbedding, schedule: NoiseSchedule, channel: int) -> None:
    """Make the embedding write log(noise / signal) of each time, as a gate's b, into one channel of tokens and nothing into the others."""
    alphas_bar = schedule.alphas_bar()
    targets = ((1 - alphas_bar) / alphas_bar).log().clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO) / _SLOPE
    inner, last = embedding.mlp[:-1], embedding.mlp[-1]
    assert isinstance(last, nn.Linear)
    hidden = inner(embedding.waves(torch.arange(schedule.steps)).float()).double()
    hidden = F.pad(hidden, (0, 1), value=1.0)  # (T, C + 1), the last for the bias
    products = hidden.T @ hidden + _RIDGE * torch.eye(hidden.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(products, hidden.T @ targets).float()
    last.weight.zero_()
    last.bias.zero_()
    last.weight[channel] = weights[:-1]
    last.bias[channel] = weights[-1]


@torch.no_grad()
def init_noise_gate(mlp: Mlp, channels: Tensor, stds: Tensor, left_open: Tensor, time: int, norm: LayerNormStats) -> None:
    """Make an MLP, in place, remove content from tokens as it drowns in noise.

    stds: (n,), of the channels (n,) of tokens. left_open: variances (n,) of the patches' values, in the diffusion's units.
    """
    _gate(mlp, channels, stds, -left_open.log() / _SLOPE, 1.0, time, norm, first=0)


@torch.no_grad()
def init_clean_gate(mlp: Mlp, channels: Tensor, stds: Tensor, left_open: Tensor, time: int, norm: LayerNormStats, *, first: int) -> None:
    """Make an MLP, in place, remove content of other patches if the patch itself is clear. first: index of the first unused hidden unit."""
    _gate(mlp, channels, stds, left_open.log() / _SLOPE, -1.0, time, norm, first)


def _gate(mlp: Mlp, channels: Tensor, stds: Tensor, bias: Tensor, sign: float, time: int, norm: LayerNormStats, first: int) -> None:
    """Set gates of the first channels, limited by the number of hidden units: a gate takes two."""
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
