"""Initial values with which queries attend to the nearest seen points.

Attention with random initial values is spread over all tokens, and a small network that is trained for a short time learns little more than
the fraction of space that is occupied. Here some channels of every token hold geometry from the start. A window's token holds four seen
points, one for each quarter of the window, and the squares of their coordinates; a query holds its own position. With a query q and a point
c, the logit (2 q · c - |c|²) / 2σ² weighs points by a Gaussian of their distance to q, since |q|² is the same for all of them: attention is
a kernel regression of the seen surface at the query. Half of the heads measure distances in space, and half across the line of sight, which
shows a query the points that were seen in front of it or behind it.

A query attends to itself, too. In the first block its own logit is (|q|² - τ²) / 2σ²: that of a point at a distance of τ. So the weight of
the query itself encodes the distance of the nearest seen point, or, across the line of sight, how far outside of the outline the query
lies; a kernel regression alone does not. The first MLP of the decoder starts with random steps of the offsets from a query to the points
that its heads found, and of those weights.

Channels that hold geometry are those of the slowest waves of the position table, which are nearly constant. Two more, of opposite signs,
are so large that norms hardly change the others. Norms subtract the mean of all channels, so whatever reads geometry after a norm also
subtracts a channel that is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import Attention, TransformerBlock
from models.systems.mcc.model import MCC

QUARTERS = 4
"""Number of quarters of a window; a token holds one seen point of each."""
SIGMA = (0.2, 0.4)
"""Standard deviation of the Gaussians in the first decoder block and in the others, in the units of points."""
SELF_DISTANCE = 0.2
"""τ in the first block: the distance of a seen point that weighs as much as the query itself."""
_NORM_SHRINKAGE = 1.001
"""Average ratio by which norms shrink the points of a scene, whose waves of the position table add to a token's length."""
_VALID = 4.0
"""Advantage of a token with seen points over other tokens, as a squared distance."""
_VALID_WITH_SELF = 0.5
"""The same advantage if a query attends to itself: the smaller, the less sensitive it is to norms."""
_VALID_IN_WINDOW = 30.0
"""Logit of a seen point over an unseen pixel of its window."""
_IN_QUARTER = 8.0
"""Logit of a pixel over a pixel two columns or rows outside of a quarter of four."""
_CLASS_TOKEN_DISTANCE = 100.0
"""Squared distance of the class token, at which no query attends to it."""
_SQUARE_SLOPE = 0.15
"""Slope of the pairs of hidden units that square coordinates: GELU(x) + GELU(-x) is about 0.8 x² for small x."""
_MAX_SLOPE = 12.0
"""Maximum slope of the hidden units that read offsets; the minimum is 1."""
_SELF_WEIGHT_STD = 2.0
"""Standard deviation of the weights by which hidden units read the queries' own attention weights."""
_GELU = math.sqrt(2 / math.pi)
_SIGNS = (1.0, 1.0, -1.0, -1.0)
"""Sign with which points of each quarter are stored, so that the mean of all channels, which norms subtract, is near 0."""
_LARGE = 20.0
"""Length of the two constants relative to that at which a norm leaves a token unchanged; norms multiply the others by it."""
_BRANCH = 0.25
"""Gain of the random outputs of branches, except the decoder's MLPs, from which outputs are read: small ones would be read with large
weights, and change a lot when training changes all weights by the same amount."""
_SMALL = 1 / 8
"""Factor of stored squares, for the same reason."""


@dataclass(frozen=True)
class GeometryChannels:
    """Indices of the channels in which tokens of some width hold geometry."""

    large: tuple[int, int]
    """Constants of opposite signs."""
    zero: int
    """0 in all tokens. Norms subtract the mean of all channels from it, too, so subtracting it restores the mean."""
    position: tuple[int, ...]
    """(3,): position of a query, or the mean of a window's points."""
    points: tuple[tuple[int, ...], ...]
    """(4, 3), times `_SIGNS`."""
    squares: tuple[int, ...]
    """(4,): the squared lengths of `points` across the line of sight, times `_SMALL`."""
    depths: tuple[int, ...]
    """(4,): the squares of their last coordinates, times `_SMALL`."""
    valid: int
    """1 if a window has seen points, otherwise 0."""
    colour: tuple[int, ...]
    """(3,): the mean of a patch."""
    head_points: tuple[tuple[int, ...], ...]
    """(heads, 3): the point that each head of the first decoder block found; empty in encoders."""
    head_colour: tuple[int, ...]
    is_query: tuple[int, ...]
    """(1,): 1 in a query; empty in encoders."""
    self_weights: tuple[int, ...]
    """(heads,): the attention weight of the query itself in the first decoder block; empty in encoders."""

    @staticmethod
    def allocate(width: int, heads: int = 0) -> GeometryChannels:
        """Allocate channels of tokens of a width. heads: of the decoder. Raises ValueError for a width that is too small."""
        needed = 3 + 3 + 5 * QUARTERS + 1 + 3 + (4 * heads + 4 if heads else 0)
        if needed > 3 * width // 4:
            raise ValueError(f"width {width} is too small: {needed} channels of slow waves are needed")
        count = width // 4
        free = iter([group * count + wave for wave in reversed(range(count)) for group in range(4)])

        def take(amount: int) -> tuple[int, ...]:
            return tuple(next(free) for _ in range(amount))

        return GeometryChannels(
            large=(next(free), next(free)),
            zero=next(free),
            squares=take(QUARTERS),
            depths=take(QUARTERS),
            points=tuple(take(3) for _ in range(QUARTERS)),
            valid=next(free),
            position=take(3),
            colour=take(3),
            is_query=take(1 if heads else 0),
            head_points=tuple(take(3) for _ in range(heads)),
            self_weights=take(heads),
            head_colour=take(3 if heads else 0),
        )

    @property
    def geometry(self) -> list[int]:
        """Channels that are the same in all blocks."""
        return [*self.large, *sum(self.points, ()), *self.squares, *self.depths, self.valid]

    @property
    def all(self) -> list[int]:
        queries = [self.zero, *self.position, *self.is_query, *sum(self.head_points, ()), *self.self_weights, *self.head_colour]
        return [*self.geometry, *self.colour, *queries]


@torch.no_grad()
def init_nearest_attention(model: MCC) -> None:
    """Initialise embeddings and attention in place so that queries attend to the nearest seen points.

    Raises ValueError if widths or heads do not fit.
    """
    config = model.config
    for name, heads in (("window_heads", config.window_heads), ("decoder_heads", config.decoder_heads)):
        if heads % QUARTERS:
            raise ValueError(f"{name}: {heads} is not a multiple of {QUARTERS}")
    for name, width, heads in (("width", config.width, config.window_heads), ("decoder_width", config.decoder_width, config.decoder_heads)):
        if width // heads < 7:
            raise ValueError(f"{name}: {heads} heads of {width} channels have less than 7 each")
    if config.window_depth != 1 or config.window % 2:
        raise ValueError("window: one block and an even side are needed")
    if not config.qkv_bias:
        raise ValueError("qkv_bias: attention needs it")
    encoder, decoder = GeometryChannels.allocate(config.width), GeometryChannels.allocate(config.decoder_width, config.decoder_heads)
    _init_window_embed(model, encoder)
    for blocks in (model.blocks, model.blocks_xyz):
        for block in blocks:
            assert isinstance(block, TransformerBlock)
            _prepare_block(block, encoder)
    for norm in (model.norm, model.norm_xyz):
        _preserve_scale(norm, encoder)
    _preserve_scale(model.decoder_norm, decoder)
    _init_patch_colour(model, encoder)
    _init_decoder_inputs(model, encoder, decoder)
    for index, block in enumerate(model.decoder_blocks):
        assert isinstance(block, TransformerBlock)
        _prepare_block(block, decoder, mlp=1.0)
        _init_gaussian_attention(block.attn, decoder, SIGMA[min(index, 1)], SELF_DISTANCE if index == 0 else None)
    if model.knowing is not None:
        _clear_geometry(model.knowing.embed, decoder)
        _preserve_scale(model.knowing.norm, decoder)
        model.knowing.look.weight.zero_()  # learnt from 0: random values would overwrite geometry
    first = model.decoder_blocks[0]
    assert isinstance(first, TransformerBlock)
    _init_head_values(first.attn, decoder)
    _init_offset_mlp(first, decoder)


def _large_constants(width: int) -> Tensor:
    """Return the two large constants of tokens of a width: (2,)."""
    return _LARGE * math.sqrt(width / 2) * torch.tensor([1.0, -1.0])


def _preserve_scale(norm: nn.Module, channels: GeometryChannels) -> None:
    """Set a norm's weights so that it changes nearly nothing but the large constants."""
    weight = norm.get_parameter("weight")
    weight.fill_(_LARGE)
    weight[list(channels.large)] = 1.0


def _prepare_block(block: TransformerBlock, channels: GeometryChannels, mlp: float = _BRANCH) -> None:
    """Reduce the outputs of a block's branches, and remove them from channels with geometry. mlp: gain of the MLP's output."""
    for layer, gain in ((block.attn.proj, _BRANCH), (block.mlp.fc2, mlp)):
        layer.weight *= gain
        _clear_geometry(layer, channels)
    for norm in (block.norm1, block.norm2):
        _preserve_scale(norm, channels)


def _init_window_embed(model: MCC, channels: GeometryChannels) -> None:
    """Initialise the window embedding: a token holds the mean of its seen points in each quarter, and their squares."""
    windows, width = model.xyz_pos_embed, model.config.width
    table = windows.two_d_pos_embed[0]  # (1 + w², C)
    for token in (windows.cls_token, model.cls_token_xyz, windows.invalid_xyz_token):
        token[..., channels.all] = 0.0
        token[..., channels.large] = _large_constants(width)
    model.cls_token_xyz[..., channels.squares] = _CLASS_TOKEN_DISTANCE * _SMALL
    embed = windows.pos_embed
    _clear_geometry(embed, channels)
    embed.bias.zero_()
    embed.bias[list(channels.large)] = _large_constants(width)
    embed.bias[channels.valid] = 1.0
    embed.weight[list(channels.position)] = torch.eye(3)
    for token in (embed.bias, windows.invalid_xyz_token):
        token.sub_(table[1:].mean(dim=0))  # slow cosines are 1
    [block] = windows.blocks
    assert isinstance(block, TransformerBlock)
    attention, heads = block.attn, block.attn.heads
    inner = width // heads
    _prepare_block(block, channels)
    (queries, keys, values), (query_bias, key_bias, value_bias) = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    for tensor in (queries, query_bias, keys, key_bias, value_bias):
        tensor.zero_()
    size = model.config.window
    wave, angle = _nearest_wave(width, math.pi / size)
    for head in range(heads):
        first, quarter = head * inner, head % QUARTERS
        row, column = ((size / 4 if half == 0 else 3 * size / 4) - 0.5 for half in divmod(quarter, 2))
        query_bias[first : first + 3] = math.sqrt(inner)
        keys[first, channels.valid] = _VALID_IN_WINDOW
        strength = _IN_QUARTER / (1 - math.cos(angle * size / 2))
        for axis, centre in enumerate((column, row)):
            sine, cosine = (2 * axis * (width // 4) + wave, (2 * axis + 1) * (width // 4) + wave)
            keys[first + 1 + axis, sine] = strength * math.sin(angle * centre)
            keys[first + 1 + axis, cosine] = strength * math.cos(angle * centre)
        values[first : first + 4] = 0.0
        values[first + torch.arange(3), list(channels.position)] = 1.0
        values[first + 3, channels.valid] = 1.0
        for matrix in (keys, values):
            _subtract_zero_channel(matrix[first : first + 4], channels)
        ratio = QUARTERS / heads
        attention.proj.weight[list(channels.points[quarter]), first + torch.arange(3)] = ratio * _SIGNS[quarter]
        attention.proj.weight[list(channels.position), first + torch.arange(3)] = ratio / QUARTERS
        attention.proj.weight[channels.valid, first + 3] = ratio / QUARTERS
    hidden = 0
    for quarter in range(QUARTERS):
        for axis, coordinate in enumerate(channels.points[quarter]):
            squared = (channels.squares if axis < 2 else channels.depths)[quarter]
            for sign in (1, -1):
                block.mlp.fc1.weight[hidden] = 0.0
                block.mlp.fc1.weight[hidden, coordinate] = sign * _SQUARE_SLOPE
                block.mlp.fc1.weight[hidden, channels.zero] = -sign * _SQUARE_SLOPE
                block.mlp.fc2.weight[:, hidden] = 0.0
                block.mlp.fc2.weight[squared, hidden] = _SMALL / (_GELU * _SQUARE_SLOPE**2)
                hidden += 1


def _nearest_wave(width: int, angle: float) -> tuple[int, float]:
    """Return the wave of a position table with about this many radians from one position to the next, and its exact radians."""
    count = width // 4
    wave = min(count - 1, max(0, round(-count * math.log(angle) / math.log(10000.0))))
    return wave, 10000.0 ** (-wave / count)


def _init_patch_colour(model: MCC, channels: GeometryChannels) -> None:
    """Initialise the patch embedding so that a token holds its patch's mean colour."""
    projection = model.patch_embed.get_parameter("proj.weight")  # (C, 3, p, p)
    bias = model.patch_embed.get_parameter("proj.bias")
    projection[channels.all] = 0.0
    bias.zero_()
    projection[list(channels.colour), torch.arange(3)] = 1 / model.config.patch_size**2
    bias[list(channels.large)] = _large_constants(model.config.width)


def _init_decoder_inputs(model: MCC, encoder: GeometryChannels, decoder: GeometryChannels) -> None:
    """Pass geometry and colours on to the decoder, and store the positions of queries."""
    width, decoder_width = model.config.width, model.config.decoder_width
    embed = model.decoder_embed
    _clear_geometry(embed, decoder)
    embed.bias.copy_(-model.decoder_pos_embed[0, 1:].mean(dim=0))  # slow cosines are 1
    embed.weight[decoder.geometry, [width + channel for channel in encoder.geometry]] = 1.0
    embed.weight[list(decoder.colour), list(encoder.colour)] = 1.0
    embed.weight[decoder.geometry, width + encoder.zero] -= 1.0
    embed.weight[list(decoder.colour), encoder.zero] -= 1.0
    for decoder_channel, encoder_channel in zip(decoder.large, encoder.large, strict=True):
        embed.weight[decoder_channel, width + encoder_channel] = _LARGE * math.sqrt(decoder_width / width)  # the norm has made them smaller
    points = model.decoder_xyz_pos_embed.pos_embed
    _clear_geometry(points, decoder)
    points.weight[list(decoder.position)] = torch.eye(3)
    points.bias.zero_()
    points.bias[list(decoder.large)] = _large_constants(decoder_width)
    points.bias[decoder.is_query[0]] = 1.0


def _clear_geometry(layer: nn.Linear, channels: GeometryChannels) -> None:
    """Remove a layer's output from channels with geometry and colours, and the mean from its other outputs, which norms would subtract."""
    free = torch.ones(layer.out_features, dtype=torch.bool)
    free[channels.all] = False
    layer.weight[~free] = 0.0
    layer.weight[free] = layer.weight[free] - layer.weight[free].mean(dim=0)


def _init_gaussian_attention(attention: Attention, channels: GeometryChannels, sigma: float, self_distance: float | None = None) -> None:
    """Initialise attention by a Gaussian of the distance between tokens' points and a query's position.

    self_distance: distance of a seen point that weighs as much as the query itself; None: the query has no weight.
    """
    inner = len(attention.qkv.weight) // 3 // attention.heads
    (queries, keys, _), (query_bias, key_bias, _) = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    for tensor in (queries, query_bias, keys, key_bias):
        tensor.zero_()
    size = math.sqrt(math.sqrt(inner) / (2 * sigma**2))  # attention divides by the square root of a head's channels
    valid = _VALID if self_distance is None else _VALID_WITH_SELF
    for head in range(attention.heads):
        first, quarter, is_lateral = head * inner, head % QUARTERS, _is_lateral(head, attention.heads)
        for axis, (position, coordinate) in enumerate(zip(channels.position, channels.points[quarter], strict=True)):
            if axis < 2 or not is_lateral:
                queries[first + axis, position] = 2 * size
                keys[first + axis, coordinate] = size * _SIGNS[quarter] * _NORM_SHRINKAGE
                if self_distance is not None:
                    keys[first + axis, position] = size / 2  # the query's own |q|²
        query_bias[first + 3] = size
        keys[first + 3, channels.squares[quarter]] = -size / _SMALL * _NORM_SHRINKAGE
        if not is_lateral:
            keys[first + 3, channels.depths[quarter]] = -size / _SMALL * _NORM_SHRINKAGE
        keys[first + 3, channels.valid] = valid * size
        if self_distance is not None:
            keys[first + 3, channels.is_query[0]] = (valid - self_distance**2) * size
    for matrix in (queries, keys):
        _subtract_zero_channel(matrix, channels)


def _subtract_zero_channel(matrix: Tensor, channels: GeometryChannels) -> None:
    """Subtract the mean of all channels, which the zero channel holds after a norm, from rows (R, C) that read geometry, in place."""
    matrix[:, channels.zero] -= matrix.sum(dim=1)


def _is_lateral(head: int, heads: int) -> bool:
    """Return True if a head measures distances across the line of sight."""
    return head >= heads // 2


def _init_head_values(attention: Attention, channels: GeometryChannels) -> None:
    """Initialise values so that heads output the points and colours that they attend to."""
    inner = len(attention.qkv.weight) // 3 // attention.heads
    values = attention.qkv.weight.chunk(3)[2]
    for head, points in enumerate(channels.head_points):
        first = head * inner
        values[first : first + 6] = 0.0
        values[first + torch.arange(3), list(channels.points[head % QUARTERS])] = 1.0
        values[first + torch.arange(3), list(channels.position)] = _SIGNS[head % QUARTERS]
        values[first + 3 + torch.arange(3), list(channels.colour)] = 1.0
        values[first + 6] = 0.0
        values[first + 6, channels.is_query[0]] = 1.0
        attention.proj.weight[channels.self_weights[head], first + 6] = 1.0
        _subtract_zero_channel(values[first : first + 7], channels)
        attention.proj.weight[list(points), first + torch.arange(3)] = 1.0
        if not _is_lateral(head, attention.heads):
            attention.proj.weight[list(channels.head_colour), first + 3 + torch.arange(3)] = 2 / attention.heads


def _init_offset_mlp(block: TransformerBlock, channels: GeometryChannels) -> None:
    """Initialise three quarters of the hidden units as steps along a random direction of the offset to a point that a head found.

    Half of these combine two heads. The other units read mixtures of the queries' own attention weights.
    """
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    count = fc1.out_features
    for unit in range(count):
        slope = math.exp(float(torch.rand(())) * math.log(_MAX_SLOPE))
        heads = torch.randperm(len(channels.head_points))[: 1 + unit % 2].tolist()
        fc1.weight[unit] = 0.0
        fc1.bias[unit] = torch.randn(())
        if unit >= 3 * count // 4:
            fc1.weight[unit, list(channels.self_weights)] = _SELF_WEIGHT_STD * torch.randn(len(channels.self_weights))
            continue
        for head in heads:
            direction = torch.randn(3)
            step = slope * direction / direction.norm() / math.sqrt(len(heads))
            fc1.weight[unit, list(channels.position)] += step
            fc1.weight[unit, list(channels.head_points[head])] = -_SIGNS[head % QUARTERS] * step
            fc1.weight[unit, channels.self_weights[head]] = torch.randn(())
        fc2.weight[:, unit] /= math.sqrt(slope)
    _subtract_zero_channel(fc1.weight, channels)
