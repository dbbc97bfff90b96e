"""In which pixel a camera sees a point of a scene, and along which ray: fitted to a map of seen points.

A request may bring points without a camera, and maps are cropped, scaled and centred on their way. What stays is that the axes are the
camera's: x to the right, y down, z forward. So a point that lies at (x, y, z) from the mean of the seen ones is in the column

    u = (a x + b + c z) / (1 + w z),

with w = 0 where all rays are parallel, and in a row of the same kind with the same w. Multiplied by the denominator all seven numbers
are linear, and least squares find them: exactly, since a seen point lies on the ray of its pixel, however wrong its depth is. Of a plane
that faces the camera any w is as good as another; the ridge then chooses parallel rays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-7
"""Ridge of the regression, as a share of the mean square that each number explains."""
_NEAREST = 1e-2
"""Denominator that points nearer to the camera, and those behind it, have instead."""
_BESIDE = 4.0
"""Largest place: points far outside of the map are as far as this."""
_LEAST = 1e-3
"""Smallest a: of a map without points it is not known."""


@dataclass(frozen=True)
class Projection:
    """Places are (column, row) from -1 at the left and upper edge of the map to 1 at the opposite ones."""

    numbers: Tensor
    """(B, 7): a, b, c of columns, a, b, c of rows, and w."""
    middle: Tensor
    """(B, 3), the mean of the seen points."""

    def places(self, points: Tensor) -> Tensor:
        """(B, P, 3) → (B, P, 2)."""
        offset = points - self.middle.unsqueeze(1)
        slope, start, tilt = self._numbers
        seen = slope * offset[..., :2] + start + tilt * offset[..., 2:]
        places: Tensor = seen / self._denominator(points)
        return places.clamp(-_BESIDE, _BESIDE)

    def rays(self, places: Tensor) -> Tensor:
        """(B, P, 2) → directions away from the camera, of length 1, (B, P, 3)."""
        slope, _, tilt = self._numbers
        across = (places * self.numbers[:, None, 6:] - tilt) / slope
        rays = torch.cat([across, torch.ones_like(across[..., :1])], dim=-1)
        return F.normalize(rays, dim=-1)

    def farther(self, seen: Tensor, by: Tensor) -> Tensor:
        """The points of a map (B, n, n, 3), each moved away from the camera along its ray by a distance (B, n, n)."""
        rays = self.rays(middles(seen.shape[1], seen).expand(len(seen), -1, -1)).view_as(seen)
        return seen + by.unsqueeze(-1) * rays

    def lengths(self, points: Tensor) -> Tensor:
        """(B, P, 3) → how long a step of 1 between places is at the depth of each point, (B, P)."""
        return (self._denominator(points) / self._numbers[0].mean(dim=-1, keepdim=True)).squeeze(-1)

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.middle.nbytes

    @property
    def _numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and c of columns and rows, (B, 1, 2) each."""
        slope, start, tilt = self.numbers[:, None, :6].reshape(-1, 1, 2, 3).unbind(dim=3)
        return slope.clamp(min=_LEAST), start, tilt

    def _denominator(self, points: Tensor) -> Tensor:
        """(B, P, 1)."""
        depth = points[..., 2:] - self.middle[:, None, 2:]
        return (1 + self.numbers[:, None, 6:] * depth).clamp(min=_NEAREST)


def middles(size: int, like: Tensor) -> Tensor:
    """Places of the middles of a map's pixels, (size · size, 2), in raster order and in the type of `like`."""
    axis = (2 * torch.arange(size, dtype=like.dtype, device=like.device) + 1) / size - 1
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def fitted(seen: Tensor, valid: Tensor) -> Projection:
    """seen (B, n, n, 3), of which those of pixels that are `valid`, bool (B, n, n), count."""
    there = valid.flatten(1).double().unsqueeze(-1)  # (B, P, 1)
    points = seen.masked_fill(~valid.unsqueeze(-1), 0.0).flatten(1, 2).double()
    count = there.sum(dim=1).clamp(min=1)
    middle = points.sum(dim=1) / count
    x, y, z = ((points - middle.unsqueeze(1)) * there).unbind(dim=-1)
    u, v = (middles(seen.shape[1], points) * there).unbind(dim=-1)
    one, none = there.squeeze(-1), torch.zeros_like(x)
    columns = torch.stack([x, one, z, none, none, none, -u * z], dim=-1)  # (B, P, 7)
    rows = torch.stack([none, none, none, y, one, z, -v * z], dim=-1)
    normal = (columns.mT @ columns + rows.mT @ rows) / count.unsqueeze(-1)  # (B, 7, 7)
    wanted = (columns.mT @ u.unsqueeze(-1) + rows.mT @ v.unsqueeze(-1)) / count.unsqueeze(-1)
    ridge = RIDGE * torch.eye(7, dtype=normal.dtype, device=normal.device)
    numbers = torch.linalg.solve(normal + ridge, wanted).squeeze(-1)
    return Projection(numbers.to(seen.dtype), middle.to(seen.dtype))
