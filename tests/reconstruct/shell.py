"""An MCC whose answer is known: whatever it sees, the occupied points are a shell around the origin, and a point's colour is its place.

Its weights are set, not trained. The decoder's queries carry their coordinates through LayerNorms that constant channels keep from
changing them; GELU(x) + GELU(-x) ≈ 2x²/√(2π) for small x squares them in the first block and their sum in the second.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from models.bundle import Bundle, BundleSpec, Preprocess, Space, Weights, write
from models.mcc.model import MCC, MCCConfig

RADIUS, HALF = 1.2, 0.12
"""Of the shell, in normalised units; its half thickness."""
SIDE, SEEN = 32, 32
"""Of the network's image and of the map of seen points."""
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
STEADY = 100.0
"""Of the constant channels, by which LayerNorm divides."""
SMALL = 0.2
"""How far GELU's argument goes."""
X, SQUARE, POWER = 0, 3, 4
"""Channels: x, y, z; a multiple of their squares' sum; a multiple of its distance from the radius', squared."""


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
        embed.weight[:3] = torch.eye(3)
        embed.bias.zero_()
        steady = width - 6
        embed.bias[6:] = STEADY * torch.tensor([1.0, -1.0]).repeat(steady // 2)
        spread = STEADY * math.sqrt(steady / width)  # what LayerNorm divides by
        curve = 2 / math.sqrt(2 * math.pi)
        # block 1: SQUARE = x² + y² + z²
        scale = SMALL / 3.0
        _square(model, 0, inputs=range(3), offset=0.0, scale=scale, spread=spread, out=SQUARE, gain=1 / (curve * scale**2))
        # block 2: POWER = (x² + y² + z² - RADIUS²)², in units that stay small beside STEADY
        scale = SMALL / 9.0
        _square(model, 1, inputs=[SQUARE], offset=-(RADIUS**2), scale=scale, spread=spread, out=POWER, gain=1 / (curve * scale**2))
        steep = 40.0
        model.decoder_pred.weight.zero_()
        model.decoder_pred.weight[0, POWER] = -steep * spread
        model.decoder_pred.bias[0] = steep * (2 * RADIUS * HALF) ** 2 + math.log(0.1 / 0.9)
        model.decoder_pred.weight[1:4, :3] = torch.eye(3) * spread / 6
        model.decoder_pred.bias[1:4] = 0.5
    return model


def _square(model: MCC, block: int, *, inputs: object, offset: float, scale: float, spread: float, out: int, gain: float) -> None:
    """channel `out` += gain · Σ (GELU(a) + GELU(-a)), a = scale · (input + offset)."""
    mlp = model.decoder_blocks[block].mlp
    for row, channel in enumerate(inputs):  # type: ignore[arg-type]
        for sign, unit in ((1, 2 * row), (-1, 2 * row + 1)):
            mlp.fc1.weight[unit, channel] = sign * scale * spread
            mlp.fc1.bias[unit] = sign * scale * offset
            mlp.fc2.weight[out, unit] = gain


def write_shell(root: Path, name: str = "shell", version: str = "1", space: Space | None = None) -> Bundle:
    spec = BundleSpec(
        name=name,
        version=version,
        task="reconstruct",
        architecture="mcc",
        config=dataclasses.asdict(CONFIG),
        preprocess=Preprocess(image_size=SIDE, short_side=SIDE, fit="squeeze", mean=(0.5,) * 3, std=(0.5,) * 3),
        space=space,
        license="CC0-1.0",
        weights=Weights(sha256="0" * 64, bytes=0),
    )
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file(shell().state_dict(), file)
        return write(root, spec, file)
