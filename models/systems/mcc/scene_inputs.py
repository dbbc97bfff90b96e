"""Input of MCC's encoders: images and maps of seen points, from captures, from depth maps and from Hypersim (arXiv 2301.08247).

A map of seen points is (..., n, n, 3); where a coordinate is not finite, no point was seen. Maps are resized bilinearly without
antialiasing, which carries infinity into every pixel that has an unseen neighbour: the edges of what was seen are lost, as in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class View:
    """One image and the points seen in it, as `MCC.encode` takes them."""

    image: Tensor
    """(1, 3, S, S), RGB in 0..1."""
    seen: Tensor
    """(1, n, n, 3)."""
    scale: Tensor
    """Scalar, by which the capture's coordinates were divided; then `centre` was taken off."""
    centre: Tensor
    """(3,)."""

    def to_capture(self, points: Tensor) -> Tensor:
        """Points (..., 3) of the model's space in the coordinates of the capture."""
        return (points + self.centre) * self.scale


@dataclass(frozen=True)
class Box:
    """Rows and columns of a crop, the last ones included; they may lie beyond the image."""

    top: int
    bottom: int
    left: int
    right: int

    def crop(self, grid: Tensor) -> Tensor:
        """(H, W, C)."""
        return grid[self.top : self.bottom + 1, self.left : self.right + 1]


def view_of_capture(rgb: Tensor, points: Tensor, mask: Tensor, *, image_size: int = 800, seen_size: int = 112, margin: int = 40) -> View:
    """A photograph of one object with a point for every pixel, as a phone with a depth sensor takes it.

    rgb: (H, W, 3) in 0..1; points: (H, W, 3) in any unit; mask: (h, w), not 0 on the object, resized if it has another size.
    The points are those on the object, centred and scaled; image and points are cropped to the object with a margin in pixels, and padded
    to squares. Raises ValueError if fewer than two points lie on the object.
    """
    objects = resize_mask(mask, rgb.shape[0], rgb.shape[1])
    normalised, scale, centre = normalise_points(points.masked_fill(~objects.unsqueeze(-1), torch.inf))
    box = box_around(objects, margin)
    image = resize(square(box.crop(rgb), 0.0), image_size).permute(0, 3, 1, 2)
    return View(image, resize(square(box.crop(normalised), torch.inf), seen_size), scale, centre)


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """(h, w) of 8-bit values → bool (H, W): bilinearly, rounded half up as an 8-bit image is; then what is not 0."""
    if mask.shape == (height, width):
        return mask != 0
    resized = F.interpolate(mask[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)
    return resized[0, 0] >= 0.5


def normalise_points(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3) → divided by `spread`, then centred on the mean of the points that are finite; scale and centre."""
    scale = spread(points)
    scaled = points / scale
    centre = _finite(scaled).mean(dim=0)
    return scaled - centre, scale, centre


def spread(points: Tensor) -> Tensor:
    """The standard deviation of the finite points, unbiased, averaged over the axes; a scalar. Raises ValueError if there are no two."""
    finite = _finite(points)
    if len(finite) < 2:
        raise ValueError(f"points: {len(finite)} are finite and on the object; two are needed at least")
    return finite.std(dim=0).mean()


def _finite(points: Tensor) -> Tensor:
    """(..., 3) → (P, 3)."""
    return points[points.isfinite().all(dim=-1)]


def box_around(mask: Tensor, margin: int) -> Box:
    """Around what is true in (H, W), with a margin that ends at the top and left of the image."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    top, bottom, left, right = (int(edge) for edge in (rows.min(), rows.max(), columns.min(), columns.max()))
    return Box(max(top - margin, 0), bottom + margin, max(left - margin, 0), right + margin)


def square(grid: Tensor, fill: float) -> Tensor:
    """(H, W, C) → (side, side, C), padded at the bottom or on the right."""
    height, width, _ = grid.shape
    side = max(height, width)
    return F.pad(grid, (0, 0, 0, side - width, 0, side - height), value=fill)


def resize(grid: Tensor, size: int) -> Tensor:
    """(H, W, C) or (B, H, W, C) → (B, size, size, C). A grid that has the size already is not touched, so it loses no edges."""
    batch = grid if grid.dim() == 4 else grid.unsqueeze(0)
    if batch.shape[1:3] == (size, size):
        return batch
    return F.interpolate(batch.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Camera:
    """A perspective camera in row vectors, x_camera = x_world R + T; +x left, +y up, the short side of an image from -1 to 1."""

    rotation: Tensor
    """(B, 3, 3)."""
    translation: Tensor
    """(B, 3)."""
    focal: Tensor
    """(B, 2)."""
    principal: Tensor
    """(B, 2)."""


def seen_in_depth(depth: Tensor, foreground: Tensor, camera: Camera, *, seen_size: int = 112, threshold: float = 0.5) -> Tensor:
    """Depth maps of CO3D → seen points in world coordinates, (B, n, n, 3), infinite outside the object and where depth is missing.

    depth: (B, 1, H, W), 0 where it is missing; foreground: (B, 1, H, W), the probability of the object, which is above `threshold` on it.
    """
    depth, masked = (
        F.interpolate(grid, size=(seen_size, seen_size), mode="bilinear", align_corners=False).squeeze(1)
        for grid in (depth, (foreground > threshold).to(depth.dtype))
    )  # (B, n, n)
    centres = 1 - (2 * torch.arange(seen_size, dtype=depth.dtype, device=depth.device) + 1) / seen_size
    plane = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)  # (n, n, 2): left, then up
    rays = (plane - camera.principal[:, None, None]) / camera.focal[:, None, None]
    in_camera = depth.unsqueeze(-1) * F.pad(rays, (0, 1), value=1.0)  # (B, n, n, 3)
    world = (in_camera - camera.translation[:, None, None]) @ camera.rotation[:, None].mT
    return world.masked_fill(~((depth > 0) & (masked > 0.5)).unsqueeze(-1), torch.inf)


def view_of_hypersim(
    rgb: Tensor,
    points: Tensor,
    orientation: Tensor,
    position: Tensor,
    metres_per_unit: float,
    *,
    corner: tuple[int, int] | None = None,
    image_size: int = 224,
    seen_size: int = 112,
) -> View:
    """A frame of Hypersim: a square crop from `corner` (row, column), else from the centre, scaled, the camera at the origin.

    rgb: (H, W, 3) in 0..1; points: (H, W, 3), world coordinates in asset units; orientation (3, 3) and position (3,) of the camera.
    """
    height, width, _ = rgb.shape
    side = min(height, width)
    top, left = corner or ((height - side) // 2, (width - side) // 2)
    box = Box(top, top + side - 1, left, left + side - 1)
    seen = resize(box.crop(hypersim_to_camera(points, orientation, position, metres_per_unit)), seen_size)
    scale = spread(seen)
    image = resize(box.crop(rgb), image_size).permute(0, 3, 1, 2)
    return View(image, seen / scale, scale, torch.zeros(3, dtype=seen.dtype, device=seen.device))


def hypersim_to_camera(points: Tensor, orientation: Tensor, position: Tensor, metres_per_unit: float) -> Tensor:
    """World coordinates in asset units → metres from the camera, which looks along +z; (..., 3)."""
    rotation = -orientation
    metres = (points @ rotation - position @ rotation) * metres_per_unit
    return metres * torch.tensor([-1.0, 1.0, 1.0], dtype=points.dtype, device=points.device)


@dataclass(frozen=True)
class Augmentation:
    """One draw for a whole batch: what is done to seen points, queries and images alike, in this order."""

    scale: Tensor
    """(3,)."""
    shift: Tensor
    """(3,)."""
    degrees: Tensor
    """(3,), about x, then y, then z, right-handed."""
    flip: bool
    """x becomes -x, and images and maps are mirrored."""

    @staticmethod
    def draw(
        generator: torch.Generator, *, moved: bool, scale_delta: float = 0.2, shift: float = 1.0, degrees: int = 180, flip: float = 0.5
    ) -> Augmentation:
        """moved: shifted and rotated too, as CO3D is; Hypersim, whose camera is the origin, is not."""
        uniform = 2 * torch.rand(2, 3, generator=generator) - 1
        drawn = Augmentation(
            scale=1 + scale_delta * uniform[0],
            shift=shift * uniform[1],
            degrees=torch.randint(-degrees, degrees + 1, (3,), generator=generator).float(),
            flip=bool(torch.rand((), generator=generator) < flip),
        )
        return drawn if moved else replace(drawn, shift=torch.zeros(3), degrees=torch.zeros(3))

    def points(self, points: Tensor) -> Tensor:
        """(..., 3)."""
        scale, shift, rotation = (value.to(points) for value in (self.scale, self.shift, rotation_about_axes(self.degrees)))
        moved = (points * scale + shift) @ rotation.mT
        return moved * torch.tensor([-1.0, 1.0, 1.0]).to(points) if self.flip else moved

    def seen(self, seen: Tensor) -> Tensor:
        """(B, n, n, 3)."""
        moved = self.points(seen)
        return moved.flip(2) if self.flip else moved

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S)."""
        return images.flip(3) if self.flip else images


def rotation_about_axes(degrees: Tensor) -> Tensor:
    """(3,) → the matrix (3, 3) that turns column vectors about x, then y, then z, right-handed."""
    rotation = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(degrees.tolist()):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        following, last = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3, dtype=torch.float64)
        turn[following, following], turn[following, last] = cos, -sin
        turn[last, following], turn[last, last] = sin, cos
        rotation = turn @ rotation
    return rotation
