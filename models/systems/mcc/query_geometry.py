"""Back surface of an object, and geometric features of an MCC's queries.

Thickness behind each seen point and colour of the far side are predicted by a small U-Net (arXiv 1505.04597) at the size of the map of seen
points. Features are distances from front and back surface and from the outline, whether a query lies in front of the object, inside or
behind it, and the image's tokens where it is projected.

A camera is fitted to the map of seen points: a request may have points without a camera, and maps are cropped, scaled and centred before
they arrive. The axes remain the camera's: x to the right, y down, z forward. So a point at (x, y, z) from the mean of the seen ones is in
the column

    u = (a x + b + c z) / (1 + w z),

with w = 0 if all rays are parallel, and in a row of the same form with the same w. Multiplied by the denominator this is linear in all
seven coefficients, and least squares find them: exactly, since a seen point lies on the ray of its pixel, however wrong its depth is. For a
plane that faces the camera all w fit equally well; the ridge then selects parallel rays.

Near points are searched around the pixel of a query, not among all points, since distances beyond a scale count as far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.stepwise import copy_to_own_pages
from models.systems.mcc.system import GEOMETRY_VALUES

NORM_GROUPS = 4
"""Number of groups of channels per norm: if each channel were normalised alone, values that are constant over the map would be lost."""
_INPUT_CHANNELS = 3 + 3 + 1
"""Number of input channels: colour, point, and whether there is a point."""
_INITIAL_THICKNESS = 0.5
"""Thickness at the start of training, in the units of points."""


@dataclass(frozen=True)
class BackSurfaceConfig:
    widths: tuple[int, ...] = (24, 48, 96, 128)
    """Channels from the map's resolution down to the coarsest; each level has half the resolution of the one before."""

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(width < NORM_GROUPS or width % NORM_GROUPS for width in self.widths):
            raise ValueError(f"widths {list(self.widths)}: two multiples of {NORM_GROUPS} at least are needed")

    @property
    def size_divisor(self) -> int:
        """Number that must divide the map's side."""
        return int(2 ** (len(self.widths) - 1))


@dataclass(frozen=True)
class BackSurface:
    """Predicted back surface per pixel; undefined where no point was seen."""

    thickness: Tensor
    """(B, n, n), distance along the ray from the seen point to where the ray leaves the object for the last time; not below 0."""
    colours: Tensor
    """(B, n, n, 3), of the back surface; in 0..1, or slightly outside."""


class BackSurfaceNet(nn.Module):
    def __init__(self, config: BackSurfaceConfig) -> None:
        super().__init__()
        finest = config.widths[0]
        self.down = nn.ModuleList(DoubleConv(narrow, wide) for narrow, wide in pairwise((_INPUT_CHANNELS, *config.widths)))
        self.up = nn.ModuleList(DoubleConv(wide + narrow, narrow) for narrow, wide in reversed(list(pairwise(config.widths))))
        self.head = nn.Conv2d(finest, 4, 1)
        nn.init.zeros_(self.head.weight)
        first = torch.tensor([math.log(math.expm1(_INITIAL_THICKNESS)), 0.0, 0.0, 0.0])  # softplus is applied to it
        self.head.bias = nn.Parameter(first)

    def forward(self, images: Tensor, seen: Tensor, valid: Tensor) -> BackSurface:
        """Predict the back surface of images (B, 3, any, any) in 0..1.

        seen: points (B, n, n, 3). valid: bool (B, n, n), False without a point.
        """
        is_valid = valid.unsqueeze(1)
        colours, points = area_resize(images, seen.shape[1]), seen.permute(0, 3, 1, 2).masked_fill(~is_valid, 0.0)
        x = torch.cat([2 * colours - 1, points, is_valid.to(points.dtype)], dim=1).to(self.head.weight.dtype)
        skips: list[Tensor] = []
        for level, convs in enumerate(self.down):
            x = convs(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        for convs, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = convs(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        outputs = self.head(x).float()
        return BackSurface(F.softplus(outputs[:, 0]), (colours + outputs[:, 1:]).permute(0, 2, 3, 1))


class DoubleConv(nn.Sequential):
    def __init__(self, narrow: int, wide: int) -> None:
        layers = [
            layer
            for channels in (narrow, wide)
            for layer in (nn.Conv2d(channels, wide, 3, padding=1), nn.GroupNorm(NORM_GROUPS, wide), nn.SiLU())
        ]
        super().__init__(*layers)


def area_resize(images: Tensor, size: int) -> Tensor:
    """Resize images by area: (B, 3, any, any) → (B, 3, size, size), each pixel the mean of the pixels that it covers."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


RIDGE = 1e-7
"""Ridge of the regression, as a fraction of the mean square of each coefficient's regressor."""
_MIN_DENOMINATOR = 1e-2
"""Minimum denominator, used for points nearer to the camera or behind it."""
_MAX_COORDINATE = 4.0
"""Maximum absolute coordinate of a projected point; points farther outside of the map are clamped to it."""
_MIN_SLOPE = 1e-3
"""Minimum a, since a map without points does not determine it."""


@dataclass(frozen=True)
class Projection:
    """A projection of points to (column, row), from -1 at the left and upper edge of the map to 1 at the opposite edges."""

    coefficients: Tensor
    """(B, 7): a, b, c of columns, a, b, c of rows, and w."""
    centre: Tensor
    """(B, 3), the mean of the seen points."""

    def project(self, points: Tensor) -> Tensor:
        """Project points (B, P, 3) → (B, P, 2)."""
        offset = points - self.centre.unsqueeze(1)
        slope, start, tilt = self._axis_coefficients
        scaled = slope * offset[..., :2] + start + tilt * offset[..., 2:]
        projected: Tensor = scaled / self._denominator(points)
        return projected.clamp(-_MAX_COORDINATE, _MAX_COORDINATE)

    def rays(self, positions: Tensor) -> Tensor:
        """Return unit directions (B, P, 3), away from the camera, of the rays through projected positions (B, P, 2)."""
        slope, _, tilt = self._axis_coefficients
        across = (positions * self.coefficients[:, None, 6:] - tilt) / slope
        rays = torch.cat([across, torch.ones_like(across[..., :1])], dim=-1)
        return F.normalize(rays, dim=-1)

    def move_along_rays(self, seen: Tensor, distances: Tensor) -> Tensor:
        """Move the points of a map (B, n, n, 3) away from the camera along their rays by distances (B, n, n)."""
        rays = self.rays(pixel_centres(seen.shape[1], seen).expand(len(seen), -1, -1)).view_as(seen)
        return seen + distances.unsqueeze(-1) * rays

    def unit_lengths(self, points: Tensor) -> Tensor:
        """Return the length in space of one unit of the projection at the depth of each point: (B, P, 3) → (B, P)."""
        return (self._denominator(points) / self._axis_coefficients[0].mean(dim=-1, keepdim=True)).squeeze(-1)

    @property
    def nbytes(self) -> int:
        return self.coefficients.nbytes + self.centre.nbytes

    @property
    def _axis_coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and c of columns and rows, (B, 1, 2) each."""
        slope, start, tilt = self.coefficients[:, None, :6].reshape(-1, 1, 2, 3).unbind(dim=3)
        return slope.clamp(min=_MIN_SLOPE), start, tilt

    def _denominator(self, points: Tensor) -> Tensor:
        """Return 1 + w z of points (B, P, 3), clamped: (B, P, 1)."""
        depth = points[..., 2:] - self.centre[:, None, 2:]
        return (1 + self.coefficients[:, None, 6:] * depth).clamp(min=_MIN_DENOMINATOR)


def pixel_centres(size: int, like: Tensor) -> Tensor:
    """Return the projected positions of a map's pixel centres, (size · size, 2), in raster order and in the dtype of `like`."""
    axis = (2 * torch.arange(size, dtype=like.dtype, device=like.device) + 1) / size - 1
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def fit_projection(seen: Tensor, valid: Tensor) -> Projection:
    """Fit a projection to points (B, n, n, 3), of which only `valid` ones, bool (B, n, n), count."""
    weights = valid.flatten(1).double().unsqueeze(-1)  # (B, P, 1)
    points = seen.masked_fill(~valid.unsqueeze(-1), 0.0).flatten(1, 2).double()
    count = weights.sum(dim=1).clamp(min=1)
    centre = points.sum(dim=1) / count
    x, y, z = ((points - centre.unsqueeze(1)) * weights).unbind(dim=-1)
    u, v = (pixel_centres(seen.shape[1], points) * weights).unbind(dim=-1)
    ones, zeros = weights.squeeze(-1), torch.zeros_like(x)
    columns = torch.stack([x, ones, z, zeros, zeros, zeros, -u * z], dim=-1)  # (B, P, 7)
    rows = torch.stack([zeros, zeros, zeros, y, ones, z, -v * z], dim=-1)
    normal = (columns.mT @ columns + rows.mT @ rows) / count.unsqueeze(-1)  # (B, 7, 7)
    right_side = (columns.mT @ u.unsqueeze(-1) + rows.mT @ v.unsqueeze(-1)) / count.unsqueeze(-1)
    ridge = RIDGE * torch.eye(7, dtype=normal.dtype, device=normal.device)
    coefficients = torch.linalg.solve(normal + ridge, right_side).squeeze(-1)
    return Projection(coefficients.to(seen.dtype), centre.to(seen.dtype))


_NEIGHBOUR_OFFSETS = (-4, -2, -1, 0, 1, 2, 4)
"""Offsets in pixels, along both axes, at which near points are searched around a query."""
_DISTANCE_SCALES = (0.05, 0.1, 0.2, 0.4)
"""Scales of distances from a surface, in the units of points."""
_DEPTH_SCALES = (0.1, 0.4, 1.6)
_OUTLINE_SCALES = (0.1, 0.4)
_EDGE_SOFTNESS = 0.05
"""Softness of the transition from outside to inside."""
_WALL_THICKNESS = 0.1
"""Thickness of walls along the outline."""
FEATURE_COUNT = 2 * len(_DISTANCE_SCALES) + 2 * len(_DEPTH_SCALES) + len(_OUTLINE_SCALES) + 2 + 9


@dataclass(frozen=True)
class SceneGeometry:
    """Front and back surface of a scene."""

    projection: Projection
    maps: Tensor
    """(B, n², 13), per pixel: a point of the front, one of the back, their colours less 0.5, and how far the pixel lies inside of the
    outline, in units of the projection. Pixels without a seen point have the values of the nearest pixel with one."""
    tokens: Tensor
    """(B, C, side, side), of the image and of seen points."""

    @property
    def nbytes(self) -> int:
        return self.projection.nbytes + self.maps.nbytes + self.tokens.nbytes

    def copy_row(self, row: int) -> SceneGeometry:
        """Copy the geometry of one scene into memory of its own."""
        coefficients, centre, maps, tokens = (
            copy_to_own_pages(part[row : row + 1])
            for part in (self.projection.coefficients, self.projection.centre, self.maps, self.tokens)
        )
        return SceneGeometry(Projection(coefficients, centre), maps, tokens)

    @staticmethod
    def cat(parts: list[SceneGeometry]) -> SceneGeometry:
        projection = Projection(
            torch.cat([part.projection.coefficients for part in parts]), torch.cat([part.projection.centre for part in parts])
        )
        return SceneGeometry(projection, torch.cat([part.maps for part in parts]), torch.cat([part.tokens for part in parts]))


@torch.no_grad()
def geometry_channels(back: BackSurfaceNet, images: Tensor, seen: Tensor, valid: Tensor, side: int) -> Tensor:
    """Encode front and back surface as token channels: (B, 1 + side², w² · GEOMETRY_VALUES), zeros for the class token.

    seen: (B, n, n, 3), finite; side: windows per side of the map, w pixels each.
    """
    surface = back(images, seen, valid)
    colours = area_resize(images, seen.shape[1]).permute(0, 2, 3, 1)
    parts = [seen, valid.unsqueeze(-1), colours, surface.thickness.unsqueeze(-1), surface.colours.clamp(0, 1)]
    pixels = torch.cat([part.to(seen.dtype) for part in parts], dim=-1)  # (B, n, n, KNOWN)
    width = seen.shape[1] // side
    split = pixels.reshape(-1, side, width, side, width, GEOMETRY_VALUES)
    return F.pad(split.transpose(2, 3).flatten(1, 2).flatten(2), (0, 0, 1, 0))


@torch.no_grad()
def decode_geometry(channels: Tensor, side: int) -> tuple[Projection, Tensor]:
    """Decode the projection and `SceneGeometry.maps`, (B, n², 13), from `geometry_channels`."""
    width = round((channels.shape[-1] // GEOMETRY_VALUES) ** 0.5)
    split = channels[:, 1:].reshape(-1, side, side, width, width, GEOMETRY_VALUES)
    pixels = split.transpose(2, 3).flatten(1, 2).flatten(2, 3)  # (B, n, n, KNOWN)
    seen, is_valid, colours, thickness, back_colours = torch.split(pixels, [3, 1, 3, 1, 3], dim=-1)
    valid = is_valid.squeeze(-1) > 0.5
    projection = fit_projection(seen, valid)
    back = projection.move_along_rays(seen, thickness.squeeze(-1))
    values = torch.cat([seen, back, colours - 0.5, back_colours - 0.5], dim=-1).flatten(1, 2)  # (B, n², 12)
    nearest = nearest_pixels(valid)[0].flatten(1).unsqueeze(-1)
    filled = values.gather(1, nearest.expand(-1, -1, values.shape[-1]))
    return projection, torch.cat([filled, inside_outline(valid).flatten(1).unsqueeze(-1)], dim=-1)


def nearest_pixels(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest valid pixel of each pixel, as row · n + column, and its distance in pixels: bool (B, n, n) → (B, n, n) each.

    Searches columns first, then rows. If no pixel is valid, distances are at least 2n.
    """
    size = valid.shape[-1]
    axis = torch.arange(size, device=valid.device)
    squares = (axis.unsqueeze(1) - axis).square().float()  # (n, n)
    across, column = torch.where(valid.unsqueeze(2), squares, 4.0 * size**2).min(dim=3)  # (B, row, column)
    squared, row = (squares.unsqueeze(2) + across.unsqueeze(1)).min(dim=2)  # over other rows
    return row * size + column.gather(1, row), squared.sqrt()


def inside_outline(valid: Tensor) -> Tensor:
    """Return how far each pixel lies inside of the outline, bool (B, n, n) → (B, n, n), below 0 outside.

    In units of the projection, in which the map is 2 wide. Single pixels that a sensor lost belong to the object.
    """
    grown = F.max_pool2d(valid.float(), 3, 1, 1)
    closed = F.pad(-F.max_pool2d(-grown, 3, 1, 1), (1, 1, 1, 1)) > 0.5
    inside, outside = (nearest_pixels(pixels)[1][:, 1:-1, 1:-1] for pixels in (~closed, closed))
    return torch.where(closed[:, 1:-1, 1:-1], inside - 0.5, 0.5 - outside) * (2 / valid.shape[-1])


@torch.no_grad()
def query_features(geometry: SceneGeometry, queries: Tensor) -> Tensor:
    """Compute the features of queries: (B, Q, 3) → (B, Q, FEATURE_COUNT), about -1 to 1."""
    maps, projection = geometry.maps, geometry.projection
    size = round(maps.shape[1] ** 0.5)
    projected = projection.project(queries)  # (B, Q, 2)
    steps = torch.tensor(_NEIGHBOUR_OFFSETS, device=maps.device)
    column, row = (((projected + 1) * (size / 2)).floor().long().clamp(0, size - 1)).unbind(dim=-1)
    columns, rows = ((cell.unsqueeze(-1) + steps).clamp(0, size - 1) for cell in (column, row))  # (B, Q, 7)
    around = (rows.unsqueeze(-1) * size + columns.unsqueeze(-2)).flatten(2)  # (B, Q, 49)
    points = _gather_pixels(maps[..., :6], around)  # (B, Q, 49, 6): front and back
    squared, index = (points.view(*around.shape, 2, 3) - queries[:, :, None, None]).square().sum(dim=-1).min(dim=2)
    distances, nearest = squared.clamp(min=1e-12).sqrt(), around.gather(2, index)  # (B, Q, 2)
    at_query = _gather_pixels(maps, row * size + column)  # (B, Q, 13)
    edge = projected.clamp(-1, 1)
    rays = projection.rays(edge)
    behind = torch.stack([((queries - at_query[..., first : first + 3]) * rays).sum(dim=-1) for first in (0, 3)], dim=-1)  # (B, Q, 2)
    outline = ((at_query[..., 12] - (projected - edge).norm(dim=-1)) * projection.unit_lengths(queries)).unsqueeze(-1)
    inside = (
        (behind[..., :1] / _EDGE_SOFTNESS).sigmoid() * (-behind[..., 1:] / _EDGE_SOFTNESS).sigmoid() * (outline / _EDGE_SOFTNESS).sigmoid()
    )
    front, back = _gather_pixels(maps[..., 6:9], nearest[..., 0]), _gather_pixels(maps[..., 9:12], nearest[..., 1])
    front_weight = ((distances[..., 1:] - distances[..., :1]) / _DISTANCE_SCALES[1]).sigmoid()
    return torch.cat(
        [
            *((-0.5 * (distances / length).square()).exp() for length in _DISTANCE_SCALES),
            *((behind / length).tanh() for length in _DEPTH_SCALES),
            *((outline / length).tanh() for length in _OUTLINE_SCALES),
            inside,
            inside * (-0.5 * (outline / _WALL_THICKNESS).square()).exp(),
            front,
            back,
            front_weight * front + (1 - front_weight) * back,
        ],
        dim=-1,
    )


class QueryGeometryEmbed(nn.Module):
    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURE_COUNT, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.look = nn.Linear(width, width, bias=False)

    def forward(self, geometry: SceneGeometry, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding (B, Q, C) and the features (B, Q, FEATURE_COUNT) of queries (B, Q, 3)."""
        features = query_features(geometry, queries)
        tokens = self.norm(geometry.tokens.movedim(1, -1)).movedim(-1, 1).float()
        projected = geometry.projection.project(queries).unsqueeze(1)  # (B, 1, Q, 2)
        image = F.grid_sample(tokens, projected, mode="bilinear", padding_mode="border", align_corners=False)  # (B, C, 1, Q)
        weight = self.embed.weight
        return self.embed(features.to(weight.dtype)) + self.look(image.squeeze(2).mT.to(weight.dtype)), features


def _gather_pixels(maps: Tensor, pixels: Tensor) -> Tensor:
    """Gather pixels of maps: (B, n², C), indices (B, …) → (B, …, C)."""
    flat = pixels.flatten(1).unsqueeze(-1).expand(-1, -1, maps.shape[-1])
    return maps.gather(1, flat).view(*pixels.shape, -1)
