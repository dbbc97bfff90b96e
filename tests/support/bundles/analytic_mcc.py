"""An MCC whose answer is known: whatever it sees, the occupied points are a shell around the origin, and a point's colour is its place.

Its weights are set, not trained. The decoder's queries carry their coordinates through LayerNorms that constant channels keep from
changing them; GELU(x) + GELU(-x) ≈ 2x²/√(2π) for small x squares them in the first block and their sum in the second.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from models.bundle import Bundle, BundleSpec
from models.bundle_schema import Preprocess, QuerySpace
from models.systems.mcc.model import MCC, MCCConfig
from tests.support.bundles.vit import UNSEALED, seal

RADIUS, HALF = 1.2, 0.12
"""Radius of the shell and its half thickness, in normalised units."""
SIDE, SEEN = 32, 32
"""Sides of the network's image and of the map of seen points, in pixels."""
CONFIG = MCCConfig(
    image_size=SIDE,
    patch_size=8,
    width=24,
    depth=1,
    heads=2,
    window_heads=2,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
    regress_colour=True,
    drop_path=0.0,
)
STEADY = 1000.0
"""Value of the constant channels, by which LayerNorm divides."""
SMALL = 0.2
"""How far GELU's argument goes."""
SQUARE, POWER = 4, 6
"""Channels: the sum of the squares of x, y and z, which are channels 0 to 2; the square of its distance from the radius', in UNITS.
Channels 3, 5 and 7 hold what brings the mean to 0, which LayerNorm subtracts."""
UNITS = 100.0
STEEP = 40.0


def shell() -> MCC:
    """Probability 0.1, the usual threshold, at a distance of HALF from the sphere; within 1 % of the radius."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MCC(CONFIG).eval()
    width = CONFIG.decoder_width
    with torch.no_grad():
        for block in model.decoder_blocks:
            for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
        embed = model.decoder_xyz_pos_embed.pos_embed
        embed.weight.zero_()
        embed.weight[:3], embed.weight[3] = torch.eye(3), -1.0
        embed.bias.zero_()
        embed.bias[8:] = STEADY * torch.tensor([1.0, -1.0]).repeat((width - 8) // 2)
        spread = STEADY * math.sqrt((width - 8) / width)  # what LayerNorm divides by
        _square(model, 0, inputs=range(3), offset=0.0, scale=SMALL / 3, spread=spread, out=SQUARE)
        _square(model, 1, inputs=[SQUARE], offset=-(RADIUS**2), scale=SMALL / 9, spread=spread, out=POWER, units=UNITS)
        head = model.decoder_pred
        head.weight.zero_()
        head.weight[0, POWER] = -STEEP * UNITS * spread
        head.bias[0] = STEEP * (2 * RADIUS * HALF) ** 2 + math.log(0.1 / 0.9)
        head.weight[1:4, :3] = torch.eye(3) * spread / 6
        head.bias[1:4] = 0.5
    return model


def _square(
    model: MCC, block: int, *, inputs: Sequence[int], offset: float, scale: float, spread: float, out: int, units: float = 1.0
) -> None:
    """Channel `out` becomes Σ (input + offset)² / units, from GELU(a) + GELU(-a) with a = scale · (input + offset)."""
    mlp = model.decoder_blocks[block].mlp
    gain = math.sqrt(2 * math.pi) / 2 / scale**2 / units
    for row, channel in enumerate(inputs):
        for unit, sign in ((2 * row, 1), (2 * row + 1, -1)):
            mlp.fc1.weight[unit, channel] = sign * scale * spread
            mlp.fc1.bias[unit] = sign * scale * offset
            mlp.fc2.weight[out, unit], mlp.fc2.weight[out + 1, unit] = gain, -gain


def write_shell(root: Path, name: str = "shell", version: str = "1", space: QuerySpace | None = None) -> Bundle:
    spec = BundleSpec(
        name=name,
        version=version,
        task="reconstruct",
        architecture="mcc",
        config=dataclasses.asdict(CONFIG),
        preprocess=Preprocess(image_size=SIDE, short_side=SIDE, fit="squeeze", mean=(0.5,) * 3, std=(0.5,) * 3),
        space=space,
        license="CC0-1.0",
        weights=UNSEALED,
    )
    return seal(root, spec, shell().state_dict())
