"""Augmentation of flags: wind, perspective, light, occlusion, scale, blur and compression.

A batch of images is a function of the flat artwork and a seed. Every image has a strength: 0 is a clean drawing (cropped, with margins or
rounded corners, waving a little, as emoji and clip art are), 1 the worst. Coordinates run from -1 to 1 across the image and across the
flag. Nothing is mirrored: a mirrored flag may be another country's.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

_GROUP = 8
"""Number of images that are rendered at once: they fit into the processor's cache, and share a resolution."""


@dataclass(frozen=True)
class Dice:
    """Random draws for one group of images, (B, 1, 1) each to broadcast with (B, H, W)."""

    count: int
    generator: Generator

    def between(self, low: float, high: float) -> Tensor:
        return torch.rand(self.count, 1, 1, generator=self.generator) * (high - low) + low

    def normal(self) -> Tensor:
        return torch.randn(self.count, 1, 1, generator=self.generator)

    def chance(self, probability: float) -> Tensor:
        """Draw 1 with this probability, else 0."""
        return (torch.rand(self.count, 1, 1, generator=self.generator) < probability).float()

    def colour(self) -> Tensor:
        """Draw colours (B, 3, 1, 1)."""
        return torch.rand(self.count, 3, 1, 1, generator=self.generator)


def render(artwork: Tensor, size: int, generator: Generator, clean: float) -> Tensor:
    """Render flat artwork, uint8 (B, 4, T, T), as images, uint8 (B, 3, size, size). clean: the share of images of strength 0."""
    return torch.cat([_group(part, size, Dice(len(part), generator), clean) for part in torch.split(artwork, _GROUP)])


def _group(artwork: Tensor, size: int, dice: Dice, clean: float) -> Tensor:
    strength = (1 - dice.chance(clean)) * dice.between(0.2, 1.0)
    steps = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = steps.view(1, -1, 1), steps.view(1, 1, -1)
    u, v, scale = _lay(x, y, strength, dice)
    u, v, shade = _blow(u, v, strength, dice)
    flag, alpha, edge = _cut(_sample(artwork, *_stretch(u, v, dice), scale, size), u, v, scale, size, dice)
    flag = _recolour(flag, strength, dice)
    flag = (flag * shade.unsqueeze(1) + _shine(x, y, strength, dice)).clamp(0, 1)
    ground = _background(x, y, strength, dice)
    ground = _pole(ground, u, v, scale, dice)
    picture = ground + alpha.unsqueeze(1) * (flag - ground)
    picture = picture * (1 - edge).unsqueeze(1)
    picture = _light(_occlude(picture, x, y, strength, dice), x, y, strength, dice)
    picture = _grain(_blur(_coarsen(picture, dice), strength, dice), strength, dice)
    return _compress((picture.clamp(0, 1) * 255).round().to(torch.uint8), strength, dice)


def _lay(x: Tensor, y: Tensor, strength: Tensor, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
    """Place the flag in the image: return flag coordinates (B, H, W) and the flag's size, 1 if it fills the image."""
    tight = dice.chance(0.45)
    half_width = torch.lerp(dice.between(0.5, 1.0), dice.between(0.92, 1.1), tight)
    half_height = torch.lerp(half_width * dice.between(0.55, 1.05), dice.between(0.92, 1.1), tight)
    free_x, free_y = (1 - half_width).clamp(min=0), (1 - half_height).clamp(min=0)
    wander = torch.maximum(strength, 0.2 * torch.ones_like(strength))
    x0, y0 = x - free_x * dice.between(-1, 1) * wander, y - free_y * dice.between(-1, 1) * wander
    angle = dice.normal() * math.radians(14) * strength
    cos, sin = angle.cos(), angle.sin()
    x1, y1 = cos * x0 + sin * y0, cos * y0 - sin * x0
    depth = 1 + strength * (dice.between(-0.28, 0.28) * x1 + dice.between(-0.28, 0.28) * y1)
    u = (x1 + strength * dice.between(-0.25, 0.25) * y1) / (half_width * depth)
    v = (y1 + strength * dice.between(-0.25, 0.25) * x1) / (half_height * depth)
    return u, v, torch.minimum(half_width, half_height)


def _blow(u: Tensor, v: Tensor, strength: Tensor, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
    """Add two waves to the cloth, stronger towards the fly, with lit slopes: return flag coordinates and brightness."""
    windy = torch.maximum(strength, dice.chance(0.5) * dice.between(0.2, 0.7))
    fixed = dice.between(0, 1)
    swing = fixed + (1 - fixed) * (u + 1).clamp(0, 2) / 2
    shade = torch.ones_like(u)
    for weight in (1.0, 0.4):
        phase = math.pi * dice.between(0.4, 2.0) / weight**0.7 * (u + dice.between(-0.5, 0.5) * v) + dice.between(0, 2 * math.pi)
        height = weight * windy * dice.between(0, 0.16) * swing
        v = v + height * phase.sin()
        u = u + 0.4 * height * dice.between(-1, 1) * phase.cos()
        shade = shade + weight * windy * dice.between(0, 0.35) * (phase + dice.between(-0.6, 0.6)).cos()
    return u, v, shade.clamp(0.25, 1.7)


def _stretch(u: Tensor, v: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
    """Move and scale stripes and emblems slightly, as artists do."""
    u = u + dice.between(-0.06, 0.06) * (math.pi * u).sin() + dice.between(-0.06, 0.06) * (math.pi / 2 * u).cos()
    v = v + dice.between(-0.06, 0.06) * (math.pi * v).sin() + dice.between(-0.03, 0.03) * (math.pi / 2 * v).cos()
    return u, v


def _sample(artwork: Tensor, u: Tensor, v: Tensor, scale: Tensor, size: int) -> Tensor:
    """Sample the artwork at flag coordinates: (B, 4, H, W), premultiplied. Small flags sample a smaller copy."""
    pixels = artwork.float() / 255
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], dim=1)
    half = F.avg_pool2d(pixels, 2)
    small = scale.flatten() * size < 0.75 * artwork.shape[-1]
    grid = torch.stack([u, v], dim=-1)
    found = torch.empty(len(artwork), 4, *u.shape[1:])
    for copy, chosen in ((pixels, ~small), (half, small)):
        if chosen.any():
            found[chosen] = F.grid_sample(copy[chosen], grid[chosen], padding_mode="border", align_corners=False)
    return found


def _cut(found: Tensor, u: Tensor, v: Tensor, scale: Tensor, size: int, dice: Dice) -> tuple[Tensor, Tensor, Tensor]:
    """Cut square, rounded or circular corners: return colours (B, 3, H, W), alpha and the darkness of an outline (B, H, W)."""
    kind = dice.between(0, 1)
    radius = torch.where(kind < 0.6, 0.0, torch.where(kind < 0.85, dice.between(0.02, 0.35), 1.0))
    du, dv = u.abs() - (1 - radius), v.abs() - (1 - radius)
    outside = torch.hypot(du.clamp(min=0), dv.clamp(min=0)) + torch.maximum(du, dv).clamp(max=0) - radius
    pixels = outside * scale * (size / 2)  # distance to the edge, positive outside
    coverage = found[:, 3]
    alpha = (0.5 - pixels).clamp(0, 1) * coverage
    edge = (1.2 - (pixels.abs() / dice.between(0.5, 2.5))).clamp(0, 1) * dice.chance(0.15) * dice.between(0.1, 0.9)
    return found[:, :3] / coverage.clamp(min=1e-3).unsqueeze(1), alpha, edge


def _recolour(flag: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Change hue, saturation, contrast and gamma."""
    wide = 0.7 + 0.6 * strength
    hue = dice.normal().clamp(-2, 2) * math.radians(6) * wide
    saturation = 1 + dice.between(-0.35, 0.3) * wide
    gain = 1 + dice.between(-0.18, 0.18) * wide
    lift = dice.between(-0.05, 0.1) * wide
    luma = torch.tensor([0.299, 0.587, 0.114])
    grey = luma.expand(3, 3)
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = hue.cos() * torch.eye(3) + (1 - hue.cos()) * axis + hue.sin() * cross  # (B, 3, 3), about the grey axis
    mix = gain * ((saturation * torch.eye(3) + (1 - saturation) * grey) @ turn)
    tint = 1 + (torch.rand(dice.count, 3, 1, generator=dice.generator) - 0.5) * 0.24 * wide
    painted = (torch.einsum("bij,bjhw->bihw", mix * tint, flag) + lift.unsqueeze(1)).clamp(0, 1)
    bend = (dice.normal().clamp(-2, 2) * 0.3 * wide).clamp(-0.9, 0.9).unsqueeze(1)
    return painted + bend * painted * (1 - painted)  # approximates a gamma


def _shine(x: Tensor, y: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Draw a soft white reflection: (B, 1, H, W)."""
    glossy = torch.maximum(strength * dice.chance(0.3), dice.chance(0.12)) * dice.between(0, 0.4)
    far = (x - dice.between(-1, 1)).square() / dice.between(0.05, 0.8) + (y - dice.between(-1, 1)).square() / dice.between(0.05, 0.8)
    return (glossy / (1 + far)).unsqueeze(1)


def _background(x: Tensor, y: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Draw a background, white, one colour, a gradient or clutter: (B, 3, H, W)."""
    coloured = torch.maximum(dice.chance(0.25), (strength > 0).float() * dice.chance(0.65)).unsqueeze(1)
    plain = torch.lerp(torch.ones(dice.count, 3, 1, 1), dice.colour(), coloured)
    slope = (dice.colour() - 0.5) * x.unsqueeze(1) + (dice.colour() - 0.5) * y.unsqueeze(1)
    size = x.shape[-1]
    cells = int(torch.randint(3, 24, (), generator=dice.generator))
    clutter = torch.rand(dice.count, 3, cells, cells, generator=dice.generator) - 0.5
    clutter = F.interpolate(clutter, (size, size), mode="bilinear", align_corners=False)
    busy = coloured * (strength > 0).float().unsqueeze(1)
    ground = (
        plain
        + busy * (dice.chance(0.5) * 0.6).unsqueeze(1) * slope
        + busy * (dice.chance(0.6) * dice.between(0.1, 1.2)).unsqueeze(1) * clutter
    )
    for _ in range(3):
        ground = _put(ground, x, y, 0.35 * busy.flatten(), (0.15, 0.9), dice)
    return ground.clamp(0, 1)


def _pole(ground: Tensor, u: Tensor, v: Tensor, scale: Tensor, dice: Dice) -> Tensor:
    thickness = dice.between(0.02, 0.05) / scale
    inside = ((u < -1) & (u > -1 - 2 * thickness) & (v > -1.1)).float() * dice.chance(0.12)
    return torch.lerp(ground, (dice.colour() * 0.7).expand_as(ground), inside.unsqueeze(1))


def _occlude(picture: Tensor, x: Tensor, y: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Put up to two shapes in front of the flag."""
    for _ in range(2):
        picture = _put(picture, x, y, 0.3 * (strength > 0).flatten(), (0.06, 0.4), dice)
    return picture


def _put(picture: Tensor, x: Tensor, y: Tensor, probability: Tensor, reach: tuple[float, float], dice: Dice) -> Tensor:
    """Put a rotated shape of one colour, between an ellipse and a rectangle, on some of the images."""
    chosen, dice = _some(probability, dice)
    if dice.count == 0:
        return picture
    angle, power = dice.between(0, math.pi), dice.between(2, 9)
    dx, dy = x - dice.between(-1.1, 1.1), y - dice.between(-1.1, 1.1)
    along = (angle.cos() * dx + angle.sin() * dy) / dice.between(*reach)
    across = (angle.cos() * dy - angle.sin() * dx) / dice.between(*reach)
    inside = along.abs().pow(power) + across.abs().pow(power) < 1  # (B, H, W)
    picture[chosen] = torch.where(inside.unsqueeze(1), dice.colour(), picture[chosen])
    return picture


def _some(probability: Tensor, dice: Dice) -> tuple[Tensor, Dice]:
    """Choose images with these probabilities (B,): return a mask (B,), and dice for the chosen ones."""
    chosen = torch.rand(dice.count, generator=dice.generator) < probability
    return chosen, Dice(int(chosen.sum()), dice.generator)


def _light(picture: Tensor, x: Tensor, y: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Add uneven, coloured light to the image."""
    fall = 1 + strength * (dice.between(-0.35, 0.35) * x + dice.between(-0.35, 0.35) * y + dice.between(-0.35, 0.25))
    colour = 1 + (dice.colour() - 0.5) * 0.3 * strength.unsqueeze(1)
    return (picture * fall.unsqueeze(1) * colour).clamp(0, 1)


def _coarsen(picture: Tensor, dice: Dice) -> Tensor:
    """Lower the resolution of the group's images, in half of the groups."""
    size = picture.shape[-1]
    side = int(torch.randint(size // 3, size * 5 // 3, (), generator=dice.generator))
    if side >= size:
        return picture
    small = F.interpolate(picture, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def _blur(picture: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Blur some images by a Gaussian with a separate width along each axis."""
    chosen, dice = _some(0.5 * (strength > 0).flatten(), dice)
    if dice.count == 0:
        return picture
    taps = torch.arange(-4, 5).float()
    channels, size = picture.shape[1:3]
    flat = picture[chosen].reshape(1, dice.count * channels, size, size)
    for shape in ((1, 9), (9, 1)):
        sigma = (strength[chosen] * dice.between(0, 2.2)).clamp(min=0.05)
        kernel = (-0.5 * (taps / sigma).square()).softmax(dim=-1)  # (B, 1, 9)
        weights = kernel.repeat_interleave(channels, dim=0).view(dice.count * channels, 1, *shape)
        flat = F.conv2d(flat, weights, padding=(shape[0] // 2, shape[1] // 2), groups=dice.count * channels)
    picture[chosen] = flat.view(dice.count, channels, size, size)
    return picture


def _grain(picture: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Add the noise of a small sensor to some images."""
    chosen, dice = _some(0.6 * (strength > 0).flatten(), dice)
    if dice.count:
        amount = (strength[chosen] * dice.between(0, 0.09)).unsqueeze(1)
        picture[chosen] += amount * torch.randn(dice.count, *picture.shape[1:], generator=dice.generator)
    return picture


def _compress(pictures: Tensor, strength: Tensor, dice: Dice) -> Tensor:
    """Compress some images as JPEG."""
    chosen = dice.chance(0.35) * torch.maximum(strength, dice.chance(0.3)) > 0
    quality = dice.between(25, 92)
    for index in chosen.flatten().nonzero().flatten().tolist():
        stored = io.BytesIO()
        Image.fromarray(pictures[index].permute(1, 2, 0).numpy()).save(stored, "JPEG", quality=int(quality[index]))
        with Image.open(stored) as image:
            pictures[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pictures
