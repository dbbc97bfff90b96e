"""Geometry that queries of an MCC know before they ask: how far they are from both sides of the object, before, inside or behind it,
how far from the outline, and what the image shows where they are projected.

Near sides are looked for around the pixel in which a query lies, not among all points: what is farther away is as good as far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.bounded_cache import copy_to_own_pages
from models.systems.mcc.back_surface import Back, shrunk
from models.systems.mcc.camera_fit import Projection, fitted
from models.systems.mcc.system import KNOWN

_STEPS = (-4, -2, -1, 0, 1, 2, 4)
"""Pixels, along both axes, at which near points are looked for around a query."""
_NEAR = (0.05, 0.1, 0.2, 0.4)
"""Distances from a surface that features tell apart, in the units of points."""
_DEEP = (0.1, 0.4, 1.6)
"""The same along the ray."""
_WIDE = (0.1, 0.4)
"""The same from the outline."""
_EDGE = 0.05
"""How gradually inside begins."""
_WALL = 0.1
"""How thick walls along the outline are."""
FEATURES = 2 * len(_NEAR) + 2 * len(_DEEP) + len(_WIDE) + 2 + 9


@dataclass(frozen=True)
class Sides:
    """Both sides of a scene."""

    projection: Projection
    maps: Tensor
    """(B, n², 13), of each pixel: a point of the front, one of the back, their colours, less 0.5, and how far the pixel lies inside of the
    outline, in places of the projection. Pixels in which no point was seen have those of the nearest pixel in which there was one."""
    tokens: Tensor
    """(B, C, side, side), of the image and of seen points."""

    @property
    def nbytes(self) -> int:
        return self.projection.nbytes + self.maps.nbytes + self.tokens.nbytes

    def kept(self, row: int) -> Sides:
        """A copy of those of one scene, to be kept for long."""
        numbers, middle, maps, tokens = (
            copy_to_own_pages(part[row : row + 1]) for part in (self.projection.numbers, self.projection.middle, self.maps, self.tokens)
        )
        return Sides(Projection(numbers, middle), maps, tokens)

    @staticmethod
    def cat(parts: list[Sides]) -> Sides:
        projection = Projection(
            torch.cat([part.projection.numbers for part in parts]), torch.cat([part.projection.middle for part in parts])
        )
        return Sides(projection, torch.cat([part.maps for part in parts]), torch.cat([part.tokens for part in parts]))


@torch.no_grad()
def told(back: Back, images: Tensor, seen: Tensor, valid: Tensor, side: int) -> Tensor:
    """Channels of a scene's tokens that `both_sides` reads: (B, 1 + side², w² · KNOWN), those of the class token 0.

    seen: (B, n, n, 3), finite; side: windows along a side of the map, each w pixels wide.
    """
    found = back(images, seen, valid)
    colours = shrunk(images, seen.shape[1]).permute(0, 2, 3, 1)
    parts = [seen, valid.unsqueeze(-1), colours, found.thickness.unsqueeze(-1), found.colours.clamp(0, 1)]
    pixels = torch.cat([part.to(seen.dtype) for part in parts], dim=-1)  # (B, n, n, KNOWN)
    width = seen.shape[1] // side
    split = pixels.reshape(-1, side, width, side, width, KNOWN)
    return F.pad(split.transpose(2, 3).flatten(1, 2).flatten(2), (0, 0, 1, 0))


@torch.no_grad()
def both_sides(channels: Tensor, side: int) -> tuple[Projection, Tensor]:
    """From `told`: the projection, and `Sides.maps`."""
    width = round((channels.shape[-1] // KNOWN) ** 0.5)
    split = channels[:, 1:].reshape(-1, side, side, width, width, KNOWN)
    pixels = split.transpose(2, 3).flatten(1, 2).flatten(2, 3)  # (B, n, n, KNOWN)
    seen, there, colours, thickness, behind = torch.split(pixels, [3, 1, 3, 1, 3], dim=-1)
    valid = there.squeeze(-1) > 0.5
    projection = fitted(seen, valid)
    back = projection.farther(seen, thickness.squeeze(-1))
    whole = torch.cat([seen, back, colours - 0.5, behind - 0.5], dim=-1).flatten(1, 2)  # (B, n², 12)
    nearest = nearest_pixels(valid)[0].flatten(1).unsqueeze(-1)
    filled = whole.gather(1, nearest.expand(-1, -1, whole.shape[-1]))
    return projection, torch.cat([filled, inside_outline(valid).flatten(1).unsqueeze(-1)], dim=-1)


def nearest_pixels(valid: Tensor) -> tuple[Tensor, Tensor]:
    """bool (B, n, n) → of each pixel, the nearest one that is valid, as row · n + column, and its distance in pixels; along columns first,
    then along rows. Where none is valid the distance is 2n at least."""
    size = valid.shape[-1]
    axis = torch.arange(size, device=valid.device)
    squares = (axis.unsqueeze(1) - axis).square().float()  # (n, n)
    across, column = torch.where(valid.unsqueeze(2), squares, 4.0 * size**2).min(dim=3)  # (B, row, column)
    squared, row = (squares.unsqueeze(2) + across.unsqueeze(1)).min(dim=2)  # over other rows
    return row * size + column.gather(1, row), squared.sqrt()


def inside_outline(valid: Tensor) -> Tensor:
    """bool (B, n, n) → how far each pixel lies inside of the outline, in places (of which the map is 2 wide), below 0 outside. Single
    pixels that a sensor lost belong to the object."""
    grown = F.max_pool2d(valid.float(), 3, 1, 1)
    closed = F.pad(-F.max_pool2d(-grown, 3, 1, 1), (1, 1, 1, 1)) > 0.5
    inside, outside = (nearest_pixels(pixels)[1][:, 1:-1, 1:-1] for pixels in (~closed, closed))
    return torch.where(closed[:, 1:-1, 1:-1], inside - 0.5, 0.5 - outside) * (2 / valid.shape[-1])


@torch.no_grad()
def features(sides: Sides, queries: Tensor) -> Tensor:
    """(B, Q, 3) → (B, Q, FEATURES), of about -1 to 1."""
    maps, projection = sides.maps, sides.projection
    size = round(maps.shape[1] ** 0.5)
    places = projection.places(queries)  # (B, Q, 2)
    steps = torch.tensor(_STEPS, device=maps.device)
    column, row = (((places + 1) * (size / 2)).floor().long().clamp(0, size - 1)).unbind(dim=-1)
    columns, rows = ((cell.unsqueeze(-1) + steps).clamp(0, size - 1) for cell in (column, row))  # (B, Q, 7)
    around = (rows.unsqueeze(-1) * size + columns.unsqueeze(-2)).flatten(2)  # (B, Q, 49)
    points = _at(maps[..., :6], around)  # (B, Q, 49, 6): front and back
    squared, which = (points.view(*around.shape, 2, 3) - queries[:, :, None, None]).square().sum(dim=-1).min(dim=2)
    distances, nearest = squared.clamp(min=1e-12).sqrt(), around.gather(2, which)  # (B, Q, 2)
    own = _at(maps, row * size + column)  # (B, Q, 13)
    edge = places.clamp(-1, 1)
    rays = projection.rays(edge)
    behind = torch.stack([((queries - own[..., first : first + 3]) * rays).sum(dim=-1) for first in (0, 3)], dim=-1)  # (B, Q, 2)
    outline = ((own[..., 12] - (places - edge).norm(dim=-1)) * projection.lengths(queries)).unsqueeze(-1)
    inside = (behind[..., :1] / _EDGE).sigmoid() * (-behind[..., 1:] / _EDGE).sigmoid() * (outline / _EDGE).sigmoid()
    front, back = _at(maps[..., 6:9], nearest[..., 0]), _at(maps[..., 9:12], nearest[..., 1])
    share = ((distances[..., 1:] - distances[..., :1]) / _NEAR[1]).sigmoid()
    return torch.cat(
        [
            *((-0.5 * (distances / length).square()).exp() for length in _NEAR),
            *((behind / length).tanh() for length in _DEEP),
            *((outline / length).tanh() for length in _WIDE),
            inside,
            inside * (-0.5 * (outline / _WALL).square()).exp(),
            front,
            back,
            share * front + (1 - share) * back,
        ],
        dim=-1,
    )


class Knowing(nn.Module):
    """Queries → what they know, and what is added to their tokens for it."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.look = nn.Linear(width, width, bias=False)

    def forward(self, sides: Sides, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, 3) → (B, Q, C), and the features, (B, Q, FEATURES)."""
        known = features(sides, queries)
        tokens = self.norm(sides.tokens.movedim(1, -1)).movedim(-1, 1).float()
        places = sides.projection.places(queries).unsqueeze(1)  # (B, 1, Q, 2)
        image = F.grid_sample(tokens, places, mode="bilinear", padding_mode="border", align_corners=False)  # (B, C, 1, Q)
        weight = self.embed.weight
        return self.embed(known.to(weight.dtype)) + self.look(image.squeeze(2).mT.to(weight.dtype)), known


def _at(maps: Tensor, pixels: Tensor) -> Tensor:
    """(B, n², C), indices (B, …) → (B, …, C)."""
    flat = pixels.flatten(1).unsqueeze(-1).expand(-1, -1, maps.shape[-1])
    return maps.gather(1, flat).view(*pixels.shape, -1)
