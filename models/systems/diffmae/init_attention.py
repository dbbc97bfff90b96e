"""Convolutional initialisation of attention (arXiv 1911.03584, section 3): every patch attends to its neighbours from the start.

Randomly initialised attention is diffuse, and a small network that is trained briefly learns little more than the mean colour of an image.
Here each head starts by attending to the patches nearest to a point some patches away and passes on their content.
A token's channels are divided for this: those of fast waves give the position; those of slow waves hold content, most of them the patch's
own, one the time and the rest the output of branches.
MLPs of the decoder start as gates over time: the noisier a patch is, the less it counts, and the clearer, the less others do. Two hidden
units of an MLP form a gate of a channel x: GELU(b + x) − GELU(b − x) is nearly 2x · GELU'(b), 2x if b is large and 0 if it is far below
zero. Here b follows the logarithm of noise over signal, so that a gate passes as much as a Wiener filter would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.block import Mlp, TransformerBlock
from models.systems.diffmae.decoder import DecoderType, DiffMAEDecoderBlock, TimeEmbedding
from models.systems.diffmae.diffusion import NoiseSchedule
from models.systems.diffmae.model import DiffMAE

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


Offset = tuple[float, float]
"""Rows down and columns to the right, in patches."""

SHARPNESS = 8.0
"""Decrease of a head's attention logit per patch of distance, rows plus columns, if tokens hold positions only."""
CONTENT = 0.25
"""Norm of an embedded patch relative to that of its pixels. It is small, so that a token's content hardly affects its attention."""
_PATCH_SHARE = 0.75
"""Share of content channels that hold the patch itself."""
_FOUND = 0.5
"""Gain of what cross-attention adds to tokens."""
_BRANCH = 0.25
"""Gain of what the other branches add."""
_VARIANCE = 160.0
"""Variance of a patch's mean, as a coefficient of the basis; half of it if the neighbours are known."""
_FALL = 1.2
"""The variance of other coefficients falls with this power of 1 + the square of their frequency."""
_FOUND_OPEN = 10.0
"""Unexplained variance, on the same scale, that weighs the output of branches."""
_MIN_FREQUENCY = 0.3
"""Minimum frequency of waves that give positions, in radians per patch. Slower ones leave their channels to content."""
_DIRECTIONS: tuple[Offset, ...] = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (-1, 1), (1, -1))


@dataclass(frozen=True)
class ContentChannels:
    patch: Tensor
    """Channels of the patch itself, low frequencies first."""
    time: int
    found: Tensor
    """Written by branches."""

    @staticmethod
    def from_width(width: int, patch_values: int) -> ContentChannels:
        """Divide the content channels of tokens `width` wide. Raises ValueError if there are too few."""
        content = content_channels(width)
        count = min(patch_values, int(_PATCH_SHARE * len(content)))
        if count < 1 or count + 1 >= len(content):
            raise ValueError(f"width: {width} has room for positions only")
        return ContentChannels(content[:count], int(content[count]), content[count + 1 :])


@torch.no_grad()
def init_neighbour_attention(model: DiffMAE) -> None:
    """Set embeddings, attention and gates in place; a head of decoder block j attends at a distance of j + 1 patches.

    The last layer starts at zero. Raises ValueError if the network is for clips, is too narrow, or has a decoder
    that is not as wide as its encoder: their positions would have no wave in common.
    """
    config = model.config
    if config.frames is not None:
        raise ValueError("frames: only networks of images can start with attention to neighbours")
    if config.width != config.decoder_width:
        raise ValueError(f"decoder_width: {config.decoder_width} is not the encoder's width, {config.width}: positions would not match")
    channels = ContentChannels.from_width(config.width, config.patch_values)
    basis = CONTENT * cosine_basis(config.patch_size, config.channels)  # (P, channels, p, p)
    convolution = model.patch_embed.get_parameter("proj.weight")
    convolution.zero_()  # the mask's channel, too, if there is one
    _embed(convolution[:, : config.channels], basis, channels)
    _embed(model.noise_embed.weight, basis.permute(0, 2, 3, 1).flatten(1), channels)  # flat patches have their colours last
    model.cls_token.zero_()
    model.cls_token[..., channels.patch] = CONTENT * torch.randn(len(channels.patch))
    positions = model.pos_embed[0, 1:]
    for block in model.blocks:
        assert isinstance(block, TransformerBlock)
        _attend(block.attn.qkv, positions, config.heads, channels)
        _find(block.attn.proj, channels, _FOUND)
        _find(block.mlp.fc2, channels, _BRANCH)
    for number, block in enumerate(model.decoder_blocks):
        assert isinstance(block, DiffMAEDecoderBlock)
        if block.cross_attn is not None:
            cross, reach = block.cross_attn, number + 1
            keys, values = cross.kv.weight.chunk(2)
            _look(cross.q.weight, cross.q.bias, positions, [(reach * row, reach * column) for row, column in _spread(cross.heads)])
            _look(keys, cross.kv.bias[: len(keys)], positions, [(0, 0)] * cross.heads)
            _hold_content(values, cross.heads, channels)
            _find(cross.proj, channels, _FOUND)
        if block.attn is not None:
            _attend(block.attn.qkv, positions, config.decoder_heads, channels)
            _find(block.attn.proj, channels, _BRANCH)
        _find(block.mlp.fc2, channels, _BRANCH)
    if model.time_embed is not None:
        init_time_channel(model.time_embed, config.schedule, channels.time)
        if config.decoder_type is not DecoderType.JOINT:  # visible patches of a joint decoder would pass the gates, too
            _weigh(model, channels)
    for parameter in model.decoder_pred.parameters():
        parameter.zero_()


def _weigh(model: DiffMAE, channels: ContentChannels) -> None:
    """Initialise the decoder's first MLP to forget noisy patches, and its last one to forget the output of branches."""
    config, norm = model.config, LayerNormStats.from_positions(model.pos_embed[0, 1:])
    squares = torch.tensor([row**2 + column**2 for row, column in _sort_by_frequency(config.patch_size) for _ in range(config.channels)])
    variances = _VARIANCE / (1 + squares[: len(channels.patch)]) ** _FALL
    blocks = cast(Sequence[DiffMAEDecoderBlock], model.decoder_blocks)
    stds = CONTENT * variances.clamp(min=1.0).sqrt()  # noise, of variance 1, dominates weaker content
    init_noise_gate(blocks[0].mlp, channels.patch, stds, variances / 2, channels.time, norm)
    found = torch.full((len(channels.found),), norm.std)
    first = 2 * len(channels.patch) if len(blocks) == 1 else 0
    init_clean_gate(blocks[-1].mlp, channels.found, found, torch.full_like(found, _FOUND_OPEN), channels.time, norm, first=first)


def cosine_basis(side: int, channels: int) -> Tensor:
    """Return an orthonormal basis of patches, (side² · channels, channels, side, side): products of cosines, low frequencies first."""
    place = torch.arange(side) + 0.5
    lines = torch.stack([(math.pi / side * frequency * place).cos() for frequency in range(side)])
    lines = lines / torch.linalg.vector_norm(lines, dim=1, keepdim=True)
    products = torch.stack([lines[row].unsqueeze(1) * lines[column] for row, column in _sort_by_frequency(side)])  # (side², side, side)
    return torch.einsum("nij,cd->ncdij", products, torch.eye(channels)).flatten(0, 1)


def _sort_by_frequency(side: int) -> list[tuple[int, int]]:
    return sorted(((row, column) for row in range(side) for column in range(side)), key=lambda pair: (sum(pair), pair))


def content_channels(width: int) -> Tensor:
    """Return the indices (n,) of channels that hold content instead of positions, the slowest waves first."""
    count = width // 4
    slow = [number for number in reversed(range(count)) if _frequencies(width)[number] < _MIN_FREQUENCY]
    return torch.tensor([group * count + number for number in slow for group in range(4)])


def _frequencies(width: int) -> Tensor:
    """Return the frequencies of `sincos_table` in radians per patch, (width / 4,)."""
    count = width // 4
    return 10000.0 ** -(torch.arange(count, dtype=torch.float64) / count)


def _embed(weight: Tensor, basis: Tensor, channels: ContentChannels) -> None:
    """Write one vector of the basis into each channel of the patch."""
    weight.zero_()
    weight[channels.patch] = basis[: len(channels.patch)]


def _spread(heads: int) -> list[Offset]:
    return [_DIRECTIONS[head % len(_DIRECTIONS)] for head in range(heads)]


def _attend(qkv: nn.Linear, positions: Tensor, heads: int, channels: ContentChannels) -> None:
    (queries, keys, values), (query_bias, key_bias, _) = qkv.weight.chunk(3), qkv.bias.chunk(3)
    _look(queries, query_bias, positions, _spread(heads))
    _look(keys, key_bias, positions, [(0, 0)] * heads)
    _hold_content(values, heads, channels)


def _look(weight: Tensor, bias: Tensor, positions: Tensor, offsets: Sequence[Offset]) -> None:
    """Set weights that read sines and cosines of a position, moved by each head's offset, from a normalised token.

    Waves are weighted by 1 / frequency, so that the sum of their products falls in proportion to the distance.
    """
    width, inner = weight.shape[1], len(weight) // len(offsets)
    count = width // 4
    fast = _frequencies(width) >= _MIN_FREQUENCY
    frequencies = _frequencies(width)[fast][: inner // 4]
    step = math.log(10000.0) / count
    # attention divides by the square root of a head's channels
    size = (2 * SHARPNESS / math.pi * step / frequencies * math.sqrt(inner)).sqrt()
    mean, std = positions.mean(), positions.std(dim=1, correction=0).mean()  # which the norm removes
    weight.zero_()
    bias.zero_()
    wave = torch.arange(len(frequencies))
    for head, (row, column) in enumerate(offsets):
        for axis, offset in enumerate((column, row)):
            sine, cosine = 2 * axis * count + wave, (2 * axis + 1) * count + wave
            first = head * inner + 2 * axis * len(frequencies) + wave
            turned_cosine, turned_sine = ((size * turn).float() for turn in ((frequencies * offset).cos(), (frequencies * offset).sin()))
            # sin(a + b) = sin a cos b + cos a sin b, and cos(a + b) = cos a cos b - sin a sin b
            for place, of_sine, of_cosine in ((first, turned_cosine, turned_sine), (first + len(wave), -turned_sine, turned_cosine)):
                weight[place, sine] = of_sine * std
                weight[place, cosine] = of_cosine * std
                bias[place] = (of_sine + of_cosine) * mean


def _hold_content(values: Tensor, heads: int, channels: ContentChannels) -> None:
    """Let every head pass on the first channels of a patch."""
    inner = len(values) // heads
    count = min(inner, len(channels.patch))
    values.zero_()
    for head in range(heads):
        values[head * inner + torch.arange(count), channels.patch[:count]] = 1.0


def _find(layer: nn.Linear, channels: ContentChannels, gain: float) -> None:
    """Let a branch write into its channels in random directions, not into those of the patch, the time and positions."""
    found = torch.empty(len(channels.found), layer.in_features)
    nn.init.orthogonal_(found, gain=gain)
    layer.weight.zero_()
    layer.weight[channels.found] = found
