"""Starting values by which a small network of clips sees motion: opponent motion energy (Adelson and Bergen, "Spatiotemporal energy models
for the perception of motion", JOSA A 2, 1985).

A network that starts at random learns which way a clip moves only after many more clips than a small recipe has: motion is a product of
what neighbouring frames show. Here patches start with pairs of filters that drift in eight directions at three speeds, and with some that
stand still. The first MLP turns each pair into its energy, and opposite directions into their difference, which is a velocity. The second
one multiplies these by the place of the patch: flow out of the middle and around it. So the mean of the tokens tells most camera moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.block import Mlp, TransformerBlock
from models.systems.mae_st.pretraining import VideoMAEPretraining

DIRECTIONS = 8
DRIFTS = ((0.6, 1 / 5), (1.5, 1 / 8), (3.5, 1 / 14))
"""Pixels a frame and cycles a pixel, of patches of 16 pixels; those of others are stretched."""
STANDING = (1 / 5, 1 / 10)
"""Cycles a pixel of the filters that do not drift, in four orientations."""
SPREAD = 4.5
"""Standard deviation of a filter's window, in pixels of a patch of 16."""
WAVES = (0.5, 1.0)
"""Cycles of a position's waves over half of the clip's side."""
PLACE = 2.0
"""Size of a position at the edge: about that of a token's other values, which LayerNorm divides by."""
ENERGY = 0.5


@dataclass(frozen=True)
class MotionChannels:
    """First channels of what a token holds."""

    filters: int
    opponents: int
    energies: int
    flows: int
    places: int
    end: int

    @staticmethod
    def of(filters: int) -> MotionChannels:
        opponents = len(DRIFTS) * DIRECTIONS // 2
        parts = (filters, opponents, filters // 2, 2 * opponents, 3 + 4 * len(WAVES))
        firsts = [sum(parts[:number]) for number in range(len(parts) + 1)]
        return MotionChannels(*firsts)


@torch.no_grad()
def init_motion_filters(model: VideoMAEPretraining) -> None:
    """Set the encoder's patches, positions and first two MLPs, in place; other channels stay random. Raises ValueError for a network that
    is too small for it."""
    config = model.config
    filters = motion_filters(config.patch_frames, config.patch_size)
    channels, hidden = MotionChannels.of(len(filters)), int(config.width * config.mlp_ratio)
    if config.width < channels.end or hidden < 2 * len(filters) or config.depth < 2 or config.patch_frames < 3:
        raise ValueError(f"a width of {channels.end}, an MLP of {2 * len(filters)}, two blocks and three frames in a patch are needed")
    if not config.separate_positions:
        raise ValueError("separate_positions is needed")
    patches = model.patch_embed.proj
    patches.weight[channels.opponents : channels.end] = 0
    patches.weight[: channels.opponents] = filters.unsqueeze(1).expand(-1, config.channels, -1, -1, -1) / config.channels
    assert patches.bias is not None
    patches.bias[: channels.end] = 0
    _tell_places(model, channels)
    first, second = model.blocks[0], model.blocks[1]
    assert isinstance(first, TransformerBlock) and isinstance(second, TransformerBlock)
    _tell_energies(first.mlp, channels)
    _tell_flows(second.mlp, channels)


def motion_filters(frames: int, side: int) -> Tensor:
    """(2K, frames, side, side), of length 1, in pairs a quarter of a wave apart: those that drift, by speed and direction, then others."""
    stretch = side / 16
    drifting = [(2 * math.pi * way / DIRECTIONS, speed, cycles) for speed, cycles in DRIFTS for way in range(DIRECTIONS)]
    standing = [(math.pi * way / 4, 0.0, cycles) for cycles in STANDING for way in range(4)]
    times, across = torch.arange(frames) - (frames - 1) / 2, (torch.arange(side) - (side - 1) / 2) / stretch
    rows, columns = torch.meshgrid(across, across, indexing="ij")
    window = torch.exp(-(rows**2 + columns**2) / (2 * SPREAD**2))
    made = []
    for angle, speed, cycles in (*drifting, *standing):
        along = columns * math.cos(angle) + rows * math.sin(angle)
        for phase in (0.0, math.pi / 2):
            wave = window * torch.cos(2 * math.pi * cycles * (along - speed * times.view(-1, 1, 1)) + phase)
            wave = wave - wave.mean()
            made.append(wave / wave.norm())
    return torch.stack(made)


def _tell_places(model: VideoMAEPretraining, channels: MotionChannels) -> None:
    """Column, row and time, from -PLACE to PLACE, then waves of column and row."""
    times, rows, columns = model.config.grid
    down, right = torch.meshgrid(_centred(rows), _centred(columns), indexing="ij")
    spatial, temporal = model.pos_embed.spatial[0], model.pos_embed.temporal[0]
    spatial[:, channels.places : channels.end] = temporal[:, channels.places : channels.end] = 0
    spatial[:, channels.places], spatial[:, channels.places + 1] = PLACE * right.flatten(), PLACE * down.flatten()
    temporal[:, channels.places + 2] = PLACE * _centred(times)
    at = channels.places + 3
    for cycles in WAVES:
        for place in (right, down):
            angle = 2 * math.pi * cycles * place.flatten()
            spatial[:, at], spatial[:, at + 1] = angle.sin(), angle.cos()
            at += 2


def _centred(count: int) -> Tensor:
    return (torch.arange(count) - (count - 1) / 2) / (count / 2)


def _tell_energies(mlp: Mlp, channels: MotionChannels) -> None:
    """GELU(x) + GELU(-x) is about |x|: of each pair of filters their sum, and those of opposite directions subtracted."""
    entry, leave = mlp.fc1, mlp.fc2
    _clear(entry, leave, 2 * channels.opponents, channels.opponents, channels.flows)
    for number in range(channels.opponents):
        entry.weight[2 * number, number], entry.weight[2 * number + 1, number] = 1, -1
    for pair in range(channels.opponents // 2):
        leave.weight[channels.energies + pair, 4 * pair : 4 * pair + 4] = ENERGY
    half = DIRECTIONS // 2
    for opponent in range(len(DRIFTS) * half):
        one = opponent // half * DIRECTIONS + opponent % half
        for pair, sign in ((one, 1), (one + half, -1)):
            leave.weight[channels.opponents + opponent, 4 * pair : 4 * pair + 4] = sign


def _tell_flows(mlp: Mlp, channels: MotionChannels) -> None:
    """|u + v| - |u - v| has the sign and about the size of u · v, of a velocity and of the place along its direction (flow out of the
    middle) or across it (flow around it)."""
    entry, leave = mlp.fc1, mlp.fc2
    flows = channels.places - channels.flows
    _clear(entry, leave, 4 * flows, channels.flows, channels.places)
    for flow in range(flows):
        opponent, across = divmod(flow, 2)
        angle = 2 * math.pi * (opponent % (DIRECTIONS // 2)) / DIRECTIONS + across * math.pi / 2
        for unit, (velocity, place, sign) in enumerate(((1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1)), 4 * flow):
            entry.weight[unit, channels.opponents + opponent] = velocity
            entry.weight[unit, channels.places] = place * math.cos(angle)
            entry.weight[unit, channels.places + 1] = place * math.sin(angle)
            leave.weight[channels.flows + flow, unit] = sign


def _clear(entry: nn.Linear, leave: nn.Linear, units: int, first: int, end: int) -> None:
    """Set the first units of an MLP, and what it adds to some channels, to 0."""
    entry.weight[:units] = entry.bias[:units] = 0
    leave.weight[first:end] = leave.bias[first:end] = 0
