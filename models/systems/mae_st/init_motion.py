"""Initialisation by which a small network of clips detects motion: opponent motion energy (Adelson and Bergen, "Spatiotemporal energy
models for the perception of motion", JOSA A 2, 1985).

After random initialisation a network needs many more clips than a small recipe has to learn directions: motion is a product of neighbouring
frames. Here patches start with pairs of filters that drift in eight directions at three speeds, and with some static ones. The first MLP
turns each pair into its energy, and opposite directions into their difference, which is a velocity. The second one multiplies these by the
position of the patch: flow out of the centre and around it. So most camera moves can be read from the mean of the tokens.
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
"""Speed in pixels per frame and cycles per pixel, for patches of 16 pixels; others are stretched."""
STATIC_CYCLES = (1 / 5, 1 / 10)
"""Cycles a pixel of the filters that do not drift, in four orientations."""
WINDOW_STD_PIXELS = 4.5
"""Standard deviation of a filter's window, in pixels of a patch of 16."""
WAVES = (0.5, 1.0)
"""Cycles of the waves of a position over half of the clip's side."""
POSITION_SCALE = 2.0
"""Value of a position at the edge: about that of a token's other values, which LayerNorm divides by."""
ENERGY_SCALE = 0.5


@dataclass(frozen=True)
class MotionChannels:
    """First channel of each part of a token."""

    filters: int
    opponents: int
    energies: int
    flows: int
    positions: int
    end: int

    @staticmethod
    def from_filters(filters: int) -> MotionChannels:
        opponents = len(DRIFTS) * DIRECTIONS // 2
        parts = (filters, opponents, filters // 2, 2 * opponents, 3 + 4 * len(WAVES))
        firsts = [sum(parts[:number]) for number in range(len(parts) + 1)]
        return MotionChannels(*firsts)


@torch.no_grad()
def init_motion_filters(model: VideoMAEPretraining) -> None:
    """Set the encoder's patches, positions and first two MLPs, in place; other channels stay random. Raises ValueError if the network is
    too small."""
    config = model.config
    filters = motion_filters(config.patch_frames, config.patch_size)
    channels, hidden = MotionChannels.from_filters(len(filters)), int(config.width * config.mlp_ratio)
    if config.width < channels.end or hidden < 2 * len(filters) or config.depth < 2 or config.patch_frames < 3:
        raise ValueError(f"a width of {channels.end}, an MLP of {2 * len(filters)}, two blocks and three frames in a patch are needed")
    if not config.separate_positions:
        raise ValueError("separate_positions is needed")
    patches = model.patch_embed.proj
    patches.weight[channels.opponents : channels.end] = 0
    patches.weight[: channels.opponents] = filters.unsqueeze(1).expand(-1, config.channels, -1, -1, -1) / config.channels
    assert patches.bias is not None
    patches.bias[: channels.end] = 0
    _init_positions(model, channels)
    first, second = model.blocks[0], model.blocks[1]
    assert isinstance(first, TransformerBlock) and isinstance(second, TransformerBlock)
    _init_energies(first.mlp, channels)
    _init_flows(second.mlp, channels)


def motion_filters(frames: int, side: int) -> Tensor:
    """Return filters of norm 1, (2K, frames, side, side), in quadrature pairs: first drifting ones by speed and direction, then static."""
    stretch = side / 16
    drifting = [(2 * math.pi * way / DIRECTIONS, speed, cycles) for speed, cycles in DRIFTS for way in range(DIRECTIONS)]
    static = [(math.pi * way / 4, 0.0, cycles) for cycles in STATIC_CYCLES for way in range(4)]
    times, across = torch.arange(frames) - (frames - 1) / 2, (torch.arange(side) - (side - 1) / 2) / stretch
    rows, columns = torch.meshgrid(across, across, indexing="ij")
    window = torch.exp(-(rows**2 + columns**2) / (2 * WINDOW_STD_PIXELS**2))
    filters = []
    for angle, speed, cycles in (*drifting, *static):
        along = columns * math.cos(angle) + rows * math.sin(angle)
        for phase in (0.0, math.pi / 2):
            wave = window * torch.cos(2 * math.pi * cycles * (along - speed * times.view(-1, 1, 1)) + phase)
            wave = wave - wave.mean()
            filters.append(wave / wave.norm())
    return torch.stack(filters)


def _init_positions(model: VideoMAEPretraining, channels: MotionChannels) -> None:
    """Set column, row and time, from -POSITION_SCALE to POSITION_SCALE, then waves of column and row."""
    times, rows, columns = model.config.grid
    down, right = torch.meshgrid(_centre(rows), _centre(columns), indexing="ij")
    spatial, temporal = model.pos_embed.spatial[0], model.pos_embed.temporal[0]
    spatial[:, channels.positions : channels.end] = temporal[:, channels.positions : channels.end] = 0
    spatial[:, channels.positions], spatial[:, channels.positions + 1] = POSITION_SCALE * right.flatten(), POSITION_SCALE * down.flatten()
    temporal[:, channels.positions + 2] = POSITION_SCALE * _centre(times)
    at = channels.positions + 3
    for cycles in WAVES:
        for position in (right, down):
            angle = 2 * math.pi * cycles * position.flatten()
            spatial[:, at], spatial[:, at + 1] = angle.sin(), angle.cos()
            at += 2


def _centre(count: int) -> Tensor:
    return (torch.arange(count) - (count - 1) / 2) / (count / 2)


def _init_energies(mlp: Mlp, channels: MotionChannels) -> None:
    """Let the MLP add the magnitudes of each pair of filters and subtract opposite directions: GELU(x) + GELU(-x) is about |x|."""
    entry, leave = mlp.fc1, mlp.fc2
    _clear(entry, leave, 2 * channels.opponents, channels.opponents, channels.flows)
    for number in range(channels.opponents):
        entry.weight[2 * number, number], entry.weight[2 * number + 1, number] = 1, -1
    for pair in range(channels.opponents // 2):
        leave.weight[channels.energies + pair, 4 * pair : 4 * pair + 4] = ENERGY_SCALE
    half = DIRECTIONS // 2
    for opponent in range(len(DRIFTS) * half):
        forwards = opponent // half * DIRECTIONS + opponent % half
        for pair, sign in ((forwards, 1), (forwards + half, -1)):
            leave.weight[channels.opponents + opponent, 4 * pair : 4 * pair + 4] = sign


def _init_flows(mlp: Mlp, channels: MotionChannels) -> None:
    """Let the MLP multiply velocities by positions: along their direction (flow out of the centre) and across it (flow around it).

    |u + v| - |u - v| has the sign and about the magnitude of u · v."""
    entry, leave = mlp.fc1, mlp.fc2
    flows = channels.positions - channels.flows
    _clear(entry, leave, 4 * flows, channels.flows, channels.positions)
    for flow in range(flows):
        opponent, across = divmod(flow, 2)
        angle = 2 * math.pi * (opponent % (DIRECTIONS // 2)) / DIRECTIONS + across * math.pi / 2
        for unit, (velocity, position, sign) in enumerate(((1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1)), 4 * flow):
            entry.weight[unit, channels.opponents + opponent] = velocity
            entry.weight[unit, channels.positions] = position * math.cos(angle)
            entry.weight[unit, channels.positions + 1] = position * math.sin(angle)
            leave.weight[channels.flows + flow, unit] = sign


def _clear(entry: nn.Linear, leave: nn.Linear, units: int, first: int, end: int) -> None:
    """Set the first units of an MLP, and what it adds to some channels, to 0."""
    entry.weight[:units] = entry.bias[:units] = 0
    leave.weight[first:end] = leave.bias[first:end] = 0
