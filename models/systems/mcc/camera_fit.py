"""Camera fitted to a map of seen points: the pixel in which it sees a point of a scene, and the ray through it.

A request may have points without a camera, and maps are cropped, scaled and centred before they arrive. The axes remain the camera's: x to
the right, y down, z forward. So a point at (x, y, z) from the mean of the seen ones is in the column

    u = (a x + b + c z) / (1 + w z),

with w = 0 if all rays are parallel, and in a row of the same form with the same w. Multiplied by the denominator this is linear in all
seven coefficients, and least squares find them: exactly, since a seen point lies on the ray of its pixel, however wrong its depth is. For a
plane that faces the camera all w fit equally well; the ridge then selects parallel rays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
