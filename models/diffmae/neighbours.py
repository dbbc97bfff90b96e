"""Starting values by which every patch looks at its neighbours: a convolutional initialisation of attention (arXiv 1911.03584, section 3).

Attention that starts at random looks everywhere, and a small network that is trained for a short time learns little more than the mean
colour of an image. Here each head starts by looking at what is nearest to a point some patches away, and passes on what it finds there.
Channels of a token are shared out for this: positions are read from those of fast waves, and those of slow ones hold content. A width of
224 holds a patch of 8 × 8 pixels in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.diffmae.decoder import DecoderBlock
from models.diffmae.model import DiffMAE
from models.layers.block import Block

Offset = tuple[float, float]
"""Rows down and columns to the right, in patches."""

SHARPNESS = 8.0
"""Decrease of a head's attention logit per patch of distance, rows and columns added, where tokens hold positions only."""
CONTENT = 0.25
"""Length of an embedded patch relative to that of its pixels. It is small, so that a token's content hardly changes where it looks."""
_BRANCH = 0.25
"""Gain of what branches add to tokens: content that is there stays readable."""
_SLOWEST = 0.3
"""Radians per patch. Positions are read from waves at least this fast, and content has the channels of the others."""
_DIRECTIONS: tuple[Offset, ...] = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (-1, 1), (1, -1))
"""Of the heads, in turn."""


@torch.no_grad()
def look_around(model: DiffMAE) -> None:
    """Set embeddings and attention, in place; a head of decoder block j looks j + 1 patches away.

    The last layer and the embedding of time start at zero. Raises ValueError for a network of clips, and
    for one whose decoder is not as wide as its encoder: their positions would have no wave in common.
    """
    config = model.config
    if config.frames is not None:
        raise ValueError("frames: only networks of images can start with a look at neighbours")
    if config.width != config.decoder_width:
        raise ValueError(f"decoder_width: {config.decoder_width} is not the encoder's width, {config.width}: positions would not match")
    basis = CONTENT * cosine_basis(config.patch_size, config.channels)  # (P, channels, p, p)
    _embed(model.patch_embed.get_parameter("proj.weight"), basis)
    _embed(model.noise_embed.weight, basis.permute(0, 2, 3, 1).flatten(1))  # flat patches have their colours last
    _start_class_token(model.cls_token)
    positions = model.pos_embed[0, 1:]
    for block in model.blocks:
        assert isinstance(block, Block)
        _attend(block.attn.qkv, positions, config.heads, _DIRECTIONS)
        _spare_positions(block.attn.proj)
        _spare_positions(block.mlp.fc2)
    for number, block in enumerate(model.decoder_blocks):
        assert isinstance(block, DecoderBlock)
        if block.cross_attn is not None:
            cross, reach = block.cross_attn, number + 1
            keys, values = cross.kv.weight.chunk(2)
            _look(cross.q.weight, cross.q.bias, positions, [(reach * row, reach * column) for row, column in _spread(cross.heads)])
            _look(keys, cross.kv.bias[: len(keys)], positions, [(0, 0)] * cross.heads)
            _hold_content(values, cross.heads)
            _spare_positions(cross.proj)
        if block.attn is not None:
            _attend(block.attn.qkv, positions, config.decoder_heads, _DIRECTIONS)
            _spare_positions(block.attn.proj)
        _spare_positions(block.mlp.fc2)
    last = [model.decoder_pred] if model.time_embed is None else [model.decoder_pred, model.time_embed.mlp[-1]]
    for layer in last:
        for parameter in layer.parameters():
            parameter.zero_()


def cosine_basis(side: int, channels: int) -> Tensor:
    """An orthonormal basis of patches, (side² · channels, channels, side, side): products of cosines, low frequencies first."""
    place = torch.arange(side) + 0.5
    lines = torch.stack([(math.pi / side * frequency * place).cos() for frequency in range(side)])
    lines = lines / torch.linalg.vector_norm(lines, dim=1, keepdim=True)
    order = sorted(((row, column) for row in range(side) for column in range(side)), key=lambda pair: (sum(pair), pair))
    products = torch.stack([lines[row].unsqueeze(1) * lines[column] for row, column in order])  # (side², side, side)
    return torch.einsum("nij,cd->ncdij", products, torch.eye(channels)).flatten(0, 1)


def content_channels(width: int) -> Tensor:
    """Indices of the channels that positions are not read from, the slowest waves first."""
    count = width // 4
    slow = [number for number in reversed(range(count)) if _frequencies(width)[number] < _SLOWEST]
    return torch.tensor([group * count + number for number in slow for group in range(4)])


def _frequencies(width: int) -> Tensor:
    """(width / 4,), radians per patch: those of `sincos_table`."""
    count = width // 4
    return 10000.0 ** -(torch.arange(count, dtype=torch.float64) / count)


def _embed(weight: Tensor, basis: Tensor) -> None:
    """Write as many vectors of the basis as there are channels for content."""
    channels = content_channels(len(weight))[: len(basis)]
    weight.zero_()
    weight[channels] = basis[: len(channels)]


def _start_class_token(token: Tensor) -> None:
    """Give it content at random and no position."""
    channels = content_channels(token.shape[-1])
    token.zero_()
    token[..., channels] = CONTENT * torch.randn(len(channels))


def _spread(heads: int) -> list[Offset]:
    return [_DIRECTIONS[head % len(_DIRECTIONS)] for head in range(heads)]


def _attend(qkv: nn.Linear, positions: Tensor, heads: int, offsets: Sequence[Offset]) -> None:
    (queries, keys, values), (query_bias, key_bias, _) = qkv.weight.chunk(3), qkv.bias.chunk(3)
    _look(queries, query_bias, positions, [offsets[head % len(offsets)] for head in range(heads)])
    _look(keys, key_bias, positions, [(0, 0)] * heads)
    _hold_content(values, heads)


def _look(weight: Tensor, bias: Tensor, positions: Tensor, offsets: Sequence[Offset]) -> None:
    """Read sines and cosines of a position that is moved by each head's offset, from a normalised token.

    Waves are weighted by 1 / frequency: then the sum of their products falls in proportion to the distance.
    """
    width, inner = weight.shape[1], len(weight) // len(offsets)
    count = width // 4
    fast = _frequencies(width) >= _SLOWEST
    frequencies = _frequencies(width)[fast][: inner // 4]
    step = math.log(10000.0) / count
    # attention divides by the square root of a head's channels
    size = (2 * SHARPNESS / math.pi * step / frequencies * math.sqrt(inner)).sqrt()
    mean, deviation = positions.mean(), positions.std(dim=1, correction=0).mean()  # what the norm takes away
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
                weight[place, sine] = of_sine * deviation
                weight[place, cosine] = of_cosine * deviation
                bias[place] = (of_sine + of_cosine) * mean


def _hold_content(values: Tensor, heads: int) -> None:
    """Let every head pass on the first channels of content."""
    channels, inner = content_channels(values.shape[1]), len(values) // heads
    count = min(inner, len(channels))
    values.zero_()
    for head in range(heads):
        values[head * inner + torch.arange(count), channels[:count]] = 1.0


def _spare_positions(layer: nn.Linear) -> None:
    """Let a branch add in directions drawn at random, and leave alone the channels that later blocks read positions from."""
    positions = torch.ones(layer.out_features, dtype=torch.bool)
    positions[content_channels(layer.out_features)] = False
    nn.init.orthogonal_(layer.weight, gain=_BRANCH)
    layer.weight[positions] = 0.0
