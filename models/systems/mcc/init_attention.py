"""Starting values by which queries look at the nearest seen points.

Attention that starts at random looks everywhere, and a small network that is trained for a short time learns little more than the share of
space that is occupied. Here some channels of every token hold geometry from the start. A window's token holds four seen points, one for
each quarter of the window, and the squares of their coordinates; a query holds its own place. With a query q and a point c, the logit
(2 q · c - |c|²) / 2σ² weighs points by a Gaussian of their distance to q, since |q|² is the same for all of them: attention is a kernel
regression of the seen surface at the query. Half of the heads measure distances in space, and half across the line of sight, which tells
a query what was seen before or behind it.

A query sees itself, too. In the first block its own logit is (|q|² - τ²) / 2σ²: that of a point at a distance of τ. So the weight that it
gives itself says how far away the nearest seen point is, or, across the line of sight, how far outside of the outline the query lies;
a kernel regression alone does not tell. The first MLP of the decoder begins with random steps of the offsets from a query to what its heads
found, and of those weights.

Channels that hold geometry are those of the slowest waves of the position table, which are nearly constant. Two more, of opposite signs,
are so large that norms hardly change the others; and what is read after a norm is read beside a channel that is 0, since norms take the
mean of all channels away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import Attention, TransformerBlock
from models.systems.mcc.model import MCC

QUARTERS = 4
"""Quarters of a window; a token holds one seen point of each."""
SIGMA = (0.2, 0.4)
"""Standard deviation of the Gaussians in the first decoder block and in the others, in the units of points."""
ALONE = 0.2
"""τ in the first block: the distance of a seen point that weighs as much as the query itself."""
_SHRUNK = 1.001
"""How much smaller norms make the points of a scene, on average: their waves of the position table add to a token's length."""
_VALID = 4.0
"""Gain of a token with seen points over the others, as a squared distance."""
_VALID_BESIDE_ITSELF = 0.5
"""The same where a query sees itself: the smaller, the less it matters what norms do to it."""
_VALID_IN_WINDOW = 30.0
"""Logit of a seen point over an unseen pixel of its window."""
_IN_QUARTER = 8.0
"""Logit of a pixel over those two columns or rows outside of a quarter of four."""
_FAR = 100.0
"""Squared distance of the class token, at which no query looks."""
_SQUARED = 0.15
"""Slope of the pairs of hidden units that square coordinates: GELU(x) + GELU(-x) is about 0.8 x² for small x."""
_STEEPEST = 12.0
"""Largest slope of the hidden units that see offsets; the smallest is 1."""
_ALONE_SLOPE = 2.0
"""Standard deviation of the weights with which hidden units read the weights that queries gave themselves."""
_GELU = math.sqrt(2 / math.pi)
_SIGNS = (1.0, 1.0, -1.0, -1.0)
"""With which points of each quarter are stored: norms take the mean of all channels away, which is near 0 then."""
_LARGE = 20.0
"""Length of the two constants relative to that at which a norm leaves a token as it is; norms multiply the others by it."""
_BRANCH = 0.25
"""Gain of what branches add at random, but the MLPs of the decoder, from which answers are read: those that are small would be read with
large weights, and move a lot when training moves all weights alike."""
_SMALL = 1 / 8
"""Squares are stored times this, for the same reason."""


@dataclass(frozen=True)
class Channels:
    """Where tokens of a width hold geometry."""

    large: tuple[int, int]
    """Constants of opposite signs."""
    zero: int
    """0 in all tokens. A norm takes the mean of all channels from it, too, so what is read beside it loses no mean."""
    place: tuple[int, ...]
    """(3,): of a query, or the mean of a window's points."""
    points: tuple[tuple[int, ...], ...]
    """(4, 3), times `_SIGNS`."""
    squares: tuple[int, ...]
    """(4,): the squared lengths of `points` across the line of sight, times `_SMALL`."""
    depths: tuple[int, ...]
    """(4,): the squares of their last coordinates, times `_SMALL`."""
    valid: int
    """1 where a window has seen points, 0 elsewhere."""
    colour: tuple[int, ...]
    """(3,): the mean of a patch."""
    found: tuple[tuple[int, ...], ...]
    """(heads, 3): the point that each head of the first decoder block found; empty in encoders."""
    found_colour: tuple[int, ...]
    asks: tuple[int, ...]
    """(1,): 1 in a query; empty in encoders."""
    alone: tuple[int, ...]
    """(heads,): the weight that a query gave itself, in the first decoder block, rather than any seen point."""

    @staticmethod
    def of(width: int, heads: int = 0) -> Channels:
        """heads: of the decoder. Raises ValueError for a width that is too small."""
        needed = 3 + 3 + 5 * QUARTERS + 1 + 3 + (4 * heads + 4 if heads else 0)
        if needed > 3 * width // 4:
            raise ValueError(f"width {width} is too small: {needed} channels of slow waves are needed")
        count = width // 4
        free = iter([group * count + wave for wave in reversed(range(count)) for group in range(4)])

        def take(number: int) -> tuple[int, ...]:
            return tuple(next(free) for _ in range(number))

        return Channels(
            large=(next(free), next(free)),
            zero=next(free),
            squares=take(QUARTERS),
            depths=take(QUARTERS),
            points=tuple(take(3) for _ in range(QUARTERS)),
            valid=next(free),
            place=take(3),
            colour=take(3),
            asks=take(1 if heads else 0),
            found=tuple(take(3) for _ in range(heads)),
            alone=take(heads),
            found_colour=take(3 if heads else 0),
        )

    @property
    def geometry(self) -> list[int]:
        """Channels that stay as they are from block to block."""
        return [*self.large, *sum(self.points, ()), *self.squares, *self.depths, self.valid]

    @property
    def all(self) -> list[int]:
        queries = [self.zero, *self.place, *self.asks, *sum(self.found, ()), *self.alone, *self.found_colour]
        return [*self.geometry, *self.colour, *queries]


@torch.no_grad()
def look_at_nearest(model: MCC) -> None:
    """Set embeddings, the geometry of all blocks and attention of the decoder, in place. Raises ValueError for sizes that have no room."""
    config = model.config
    for name, heads in (("window_heads", config.window_heads), ("decoder_heads", config.decoder_heads)):
        if heads % QUARTERS:
            raise ValueError(f"{name}: {heads} is no multiple of {QUARTERS}")
    for name, width, heads in (("width", config.width, config.window_heads), ("decoder_width", config.decoder_width, config.decoder_heads)):
        if width // heads < 7:
            raise ValueError(f"{name}: {heads} heads of {width} channels have less than 7 each")
    if config.window_depth != 1 or config.window % 2:
        raise ValueError("window: one block and an even side are needed")
    if not config.qkv_bias:
        raise ValueError("qkv_bias: attention needs it")
    encoder, decoder = Channels.of(config.width), Channels.of(config.decoder_width, config.decoder_heads)
    _windows(model, encoder)
    for blocks in (model.blocks, model.blocks_xyz):
        for block in blocks:
            assert isinstance(block, TransformerBlock)
            _prepare(block, encoder)
    for norm in (model.norm, model.norm_xyz):
        _keep(norm, encoder)
    _keep(model.decoder_norm, decoder)
    _hold_colour(model, encoder)
    _join(model, encoder, decoder)
    for number, block in enumerate(model.decoder_blocks):
        assert isinstance(block, TransformerBlock)
        _prepare(block, decoder, mlp=1.0)
        _look(block.attn, decoder, SIGMA[min(number, 1)], ALONE if number == 0 else None)
    if model.knowing is not None:
        _balance(model.knowing.embed, decoder)
        _keep(model.knowing.norm, decoder)
        model.knowing.look.weight.zero_()  # to be learnt: at random it would write where geometry is
    first = model.decoder_blocks[0]
    assert isinstance(first, TransformerBlock)
    _find(first.attn, decoder)
    _see_offsets(first, decoder)


def _large(width: int) -> Tensor:
    """(2,)."""
    return _LARGE * math.sqrt(width / 2) * torch.tensor([1.0, -1.0])


def _keep(norm: nn.Module, channels: Channels) -> None:
    """Let a norm leave all but the large constants as they are, nearly."""
    weight = norm.get_parameter("weight")
    weight.fill_(_LARGE)
    weight[list(channels.large)] = 1.0


def _prepare(block: TransformerBlock, channels: Channels, mlp: float = _BRANCH) -> None:
    """Let branches add little, and nothing where geometry is. mlp: gain of the MLP's."""
    for layer, gain in ((block.attn.proj, _BRANCH), (block.mlp.fc2, mlp)):
        layer.weight *= gain
        _balance(layer, channels)
    for norm in (block.norm1, block.norm2):
        _keep(norm, channels)


def _windows(model: MCC, channels: Channels) -> None:
    """Let the token of a window hold the mean of its seen points in each quarter, and the squares."""
    windows, width = model.xyz_pos_embed, model.config.width
    table = windows.two_d_pos_embed[0]  # (1 + w², C)
    for token in (windows.cls_token, model.cls_token_xyz, windows.invalid_xyz_token):
        token[..., channels.all] = 0.0
        token[..., channels.large] = _large(width)
    model.cls_token_xyz[..., channels.squares] = _FAR * _SMALL
    embed = windows.pos_embed
    _balance(embed, channels)
    embed.bias.zero_()
    embed.bias[list(channels.large)] = _large(width)
    embed.bias[channels.valid] = 1.0
    embed.weight[list(channels.place)] = torch.eye(3)
    for token in (embed.bias, windows.invalid_xyz_token):
        token.sub_(table[1:].mean(dim=0))  # slow cosines are 1
    [block] = windows.blocks
    assert isinstance(block, TransformerBlock)
    attention, heads = block.attn, block.attn.heads
    inner = width // heads
    _prepare(block, channels)
    (queries, keys, values), (query_bias, key_bias, value_bias) = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    for tensor in (queries, query_bias, keys, key_bias, value_bias):
        tensor.zero_()
    size = model.config.window
    wave, angle = _wave_of(width, math.pi / size)
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
        values[first + torch.arange(3), list(channels.place)] = 1.0
        values[first + 3, channels.valid] = 1.0
        for matrix in (keys, values):
            _read_beside_zero(matrix[first : first + 4], channels)
        share = QUARTERS / heads
        attention.proj.weight[list(channels.points[quarter]), first + torch.arange(3)] = share * _SIGNS[quarter]
        attention.proj.weight[list(channels.place), first + torch.arange(3)] = share / QUARTERS
        attention.proj.weight[channels.valid, first + 3] = share / QUARTERS
    hidden = 0
    for quarter in range(QUARTERS):
        for axis, coordinate in enumerate(channels.points[quarter]):
            squared = (channels.squares if axis < 2 else channels.depths)[quarter]
            for sign in (1, -1):
                block.mlp.fc1.weight[hidden] = 0.0
                block.mlp.fc1.weight[hidden, coordinate] = sign * _SQUARED
                block.mlp.fc1.weight[hidden, channels.zero] = -sign * _SQUARED
                block.mlp.fc2.weight[:, hidden] = 0.0
                block.mlp.fc2.weight[squared, hidden] = _SMALL / (_GELU * _SQUARED**2)
                hidden += 1


def _wave_of(width: int, angle: float) -> tuple[int, float]:
    """The wave of a position table with about this many radians from one position to the next, and its own."""
    count = width // 4
    wave = min(count - 1, max(0, round(-count * math.log(angle) / math.log(10000.0))))
    return wave, 10000.0 ** (-wave / count)


def _hold_colour(model: MCC, channels: Channels) -> None:
    """Let a patch's token hold its mean colour."""
    projection = model.patch_embed.get_parameter("proj.weight")  # (C, 3, p, p)
    bias = model.patch_embed.get_parameter("proj.bias")
    projection[channels.all] = 0.0
    bias.zero_()
    projection[list(channels.colour), torch.arange(3)] = 1 / model.config.patch_size**2
    bias[list(channels.large)] = _large(model.config.width)


def _join(model: MCC, encoder: Channels, decoder: Channels) -> None:
    """Hand geometry and colours on to the decoder, and give queries their places."""
    width, small = model.config.width, model.config.decoder_width
    embed = model.decoder_embed
    _balance(embed, decoder)
    embed.bias.copy_(-model.decoder_pos_embed[0, 1:].mean(dim=0))  # slow cosines are 1
    embed.weight[decoder.geometry, [width + channel for channel in encoder.geometry]] = 1.0
    embed.weight[list(decoder.colour), list(encoder.colour)] = 1.0
    embed.weight[decoder.geometry, width + encoder.zero] -= 1.0
    embed.weight[list(decoder.colour), encoder.zero] -= 1.0
    for own, theirs in zip(decoder.large, encoder.large, strict=True):
        embed.weight[own, width + theirs] = _LARGE * math.sqrt(small / width)  # the norm has made them smaller
    points = model.decoder_xyz_pos_embed.pos_embed
    _balance(points, decoder)
    points.weight[list(decoder.place)] = torch.eye(3)
    points.bias.zero_()
    points.bias[list(decoder.large)] = _large(small)
    points.bias[decoder.asks[0]] = 1.0


def _balance(layer: nn.Linear, channels: Channels) -> None:
    """Let a layer leave alone the channels that hold geometry and colours, and the mean of the others, which norms take away."""
    free = torch.ones(layer.out_features, dtype=torch.bool)
    free[channels.all] = False
    layer.weight[~free] = 0.0
    layer.weight[free] = layer.weight[free] - layer.weight[free].mean(dim=0)


def _look(attention: Attention, channels: Channels, sigma: float, alone: float | None = None) -> None:
    """Weigh tokens by a Gaussian of the distance between their points and a query's place.

    alone: the distance at which a query itself weighs as much as a seen point; None: it weighs nothing.
    """
    inner = len(attention.qkv.weight) // 3 // attention.heads
    (queries, keys, _), (query_bias, key_bias, _) = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    for tensor in (queries, query_bias, keys, key_bias):
        tensor.zero_()
    size = math.sqrt(math.sqrt(inner) / (2 * sigma**2))  # attention divides by the square root of a head's channels
    valid = _VALID if alone is None else _VALID_BESIDE_ITSELF
    for head in range(attention.heads):
        first, quarter, across = head * inner, head % QUARTERS, _looks_across(head, attention.heads)
        for number, (place, coordinate) in enumerate(zip(channels.place, channels.points[quarter], strict=True)):
            if number < 2 or not across:
                queries[first + number, place] = 2 * size
                keys[first + number, coordinate] = size * _SIGNS[quarter] * _SHRUNK
                if alone is not None:
                    keys[first + number, place] = size / 2  # |q|² of its own
        query_bias[first + 3] = size
        keys[first + 3, channels.squares[quarter]] = -size / _SMALL * _SHRUNK
        if not across:
            keys[first + 3, channels.depths[quarter]] = -size / _SMALL * _SHRUNK
        keys[first + 3, channels.valid] = valid * size
        if alone is not None:
            keys[first + 3, channels.asks[0]] = (valid - alone**2) * size
    for matrix in (queries, keys):
        _read_beside_zero(matrix, channels)


def _read_beside_zero(matrix: Tensor, channels: Channels) -> None:
    """Let rows (R, C) that read geometry after a norm not read the mean of all channels, in place."""
    matrix[:, channels.zero] -= matrix.sum(dim=1)


def _looks_across(head: int, heads: int) -> bool:
    """Whether a head measures distances across the line of sight."""
    return head >= heads // 2


def _find(attention: Attention, channels: Channels) -> None:
    """Write down the points and colours that heads find."""
    inner = len(attention.qkv.weight) // 3 // attention.heads
    values = attention.qkv.weight.chunk(3)[2]
    for head, found in enumerate(channels.found):
        first = head * inner
        values[first : first + 6] = 0.0
        values[first + torch.arange(3), list(channels.points[head % QUARTERS])] = 1.0
        values[first + torch.arange(3), list(channels.place)] = _SIGNS[head % QUARTERS]
        values[first + 3 + torch.arange(3), list(channels.colour)] = 1.0
        values[first + 6] = 0.0
        values[first + 6, channels.asks[0]] = 1.0
        attention.proj.weight[channels.alone[head], first + 6] = 1.0
        _read_beside_zero(values[first : first + 7], channels)
        attention.proj.weight[list(found), first + torch.arange(3)] = 1.0
        if not _looks_across(head, attention.heads):
            attention.proj.weight[list(channels.found_colour), first + 3 + torch.arange(3)] = 2 / attention.heads


def _see_offsets(block: TransformerBlock, channels: Channels) -> None:
    """Let three quarters of the hidden units begin with a step of some width along some direction from what a head found, half of them
    together with what another head found; and the others with a mixture of the weights that the query gave itself."""
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    count = fc1.out_features
    for unit in range(count):
        slope = math.exp(float(torch.rand(())) * math.log(_STEEPEST))
        heads = torch.randperm(len(channels.found))[: 1 + unit % 2].tolist()
        fc1.weight[unit] = 0.0
        fc1.bias[unit] = torch.randn(())
        if unit >= 3 * count // 4:
            fc1.weight[unit, list(channels.alone)] = _ALONE_SLOPE * torch.randn(len(channels.alone))
            continue
        for head in heads:
            direction = torch.randn(3)
            step = slope * direction / direction.norm() / math.sqrt(len(heads))
            fc1.weight[unit, list(channels.place)] += step
            fc1.weight[unit, list(channels.found[head])] = -_SIGNS[head % QUARTERS] * step
            fc1.weight[unit, channels.alone[head]] = torch.randn(())
        fc2.weight[:, unit] /= math.sqrt(slope)
    _read_beside_zero(fc1.weight, channels)
