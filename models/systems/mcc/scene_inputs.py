"""Input of MCC's encoders: images and maps of seen points, from captures, from depth maps and from Hypersim (arXiv 2301.08247).

A map of seen points is (..., n, n, 3); no point was seen where a coordinate is not finite. Maps are resized bilinearly without
antialiasing, which spreads infinity to every pixel that has an unseen neighbour: the edges of the seen surface are lost, as in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SceneView:
    """An image and the points seen in it, as `MCC.encode` takes them."""

    image: Tensor
    """(1, 3, S, S), RGB in 0..1."""
    seen: Tensor
    """(1, n, n, 3)."""
    scale: Tensor
    """Scalar by which the capture's coordinates were divided, before `centre` was subtracted."""
    centre: Tensor
    """(3,)."""


@dataclass(frozen=True)
class CropBox:
    """Rows and columns of a crop, the last ones included; they may lie beyond the image."""

    top: int
    bottom: int
    left: int
    right: int

    def crop(self, grid: Tensor) -> Tensor:
        return grid[self.top : self.bottom + 1, self.left : self.right + 1]


def capture_to_view(
    rgb: Tensor, points: Tensor, mask: Tensor, *, image_size: int = 800, seen_size: int = 112, margin: int = 40
) -> SceneView:
    """Convert a photograph of one object with a point per pixel, as a phone with a depth sensor takes it.

    rgb: (H, W, 3) in 0..1; points: (H, W, 3) in any unit; mask: (h, w), not 0 on the object, resized if it has another size. The points are
    those on the object, centred and scaled; image and points are cropped to the object with a margin in pixels, and padded to squares.
    Raises ValueError if fewer than two points lie on the object.
    """
    objects = resize_mask(mask, rgb.shape[0], rgb.shape[1])
    normalised, scale, centre = normalise_points(points.masked_fill(~objects.unsqueeze(-1), torch.inf))
    box = box_around(objects, margin)
    image = resize(pad_to_square(box.crop(rgb), 0.0), image_size).permute(0, 3, 1, 2)
    return SceneView(image, resize(pad_to_square(box.crop(normalised), torch.inf), seen_size), scale, centre)


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize a mask (h, w) of 8-bit values to bool (H, W): bilinearly, rounded half up as an 8-bit image is; then not 0."""
    if mask.shape == (height, width):
        return mask != 0
    resized = F.interpolate(mask[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)
    return resized[0, 0] >= 0.5


def normalise_points(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Divide points (..., 3) by `point_spread`, then centre them on the mean of the finite ones; return them with scale and centre (3,)."""
    scale = point_spread(points)
    scaled = points / scale
    centre = _finite(scaled).mean(dim=0)
    return scaled - centre, scale, centre


def point_spread(points: Tensor) -> Tensor:
    """Return the unbiased standard deviation of the finite points, averaged over the axes: a scalar. Raises ValueError if there are fewer
    than two."""
    finite = _finite(points)
    if len(finite) < 2:
        raise ValueError(f"points: {len(finite)} are finite and on the object; two are needed at least")
    return finite.std(dim=0).mean()


def _finite(points: Tensor) -> Tensor:
    """Return the finite points: (..., 3) → (P, 3)."""
    return points[points.isfinite().all(dim=-1)]


def box_around(mask: Tensor, margin: int) -> CropBox:
    """Return the box around the True pixels of (H, W), with a margin that is cut at the top and left of the image."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    top, bottom, left, right = (int(edge) for edge in (rows.min(), rows.max(), columns.min(), columns.max()))
    return CropBox(max(top - margin, 0), bottom + margin, max(left - margin, 0), right + margin)


def pad_to_square(grid: Tensor, fill: float) -> Tensor:
    """Pad a grid at the bottom or on the right: (H, W, C) → (side, side, C)."""
    height, width, _ = grid.shape
    side = max(height, width)
    return F.pad(grid, (0, 0, 0, side - width, 0, side - height), value=fill)


def resize(grid: Tensor, size: int) -> Tensor:
    """Resize a grid (H, W, C) or (B, H, W, C) → (B, size, size, C). A grid of that size is not touched, so it loses no edges."""
    batch = grid if grid.dim() == 4 else grid.unsqueeze(0)
    if batch.shape[1:3] == (size, size):
        return batch
    return F.interpolate(batch.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class PerspectiveCamera:
    """A perspective camera in row vectors, x_camera = x_world R + T; +x left, +y up, the short side of an image from -1 to 1."""

    rotation: Tensor
    """(B, 3, 3)."""
    translation: Tensor
    """(B, 3)."""
    focal: Tensor
    """(B, 2)."""
    principal: Tensor
    """(B, 2)."""


def depth_to_seen_points(
    depth: Tensor, foreground: Tensor, camera: PerspectiveCamera, *, seen_size: int = 112, threshold: float = 0.5
) -> Tensor:
    """Convert depth maps of CO3D to seen points in world coordinates, (B, n, n, 3), infinite outside the object and without depth.

    depth: (B, 1, H, W), 0 if it is missing; foreground: (B, 1, H, W), the probability of the object, which is above `threshold` on it.
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


@dataclass(frozen=True)
class SceneAugmentation:
    """One draw for a whole batch: transformations of seen points, queries and images, in this order."""

    scale: Tensor
    """(3,)."""
    shift: Tensor
    """(3,)."""
    degrees: Tensor
    """(3,), about x, then y, then z, right-handed."""
    flip: bool
    """Whether to negate x and mirror images and maps."""

    @staticmethod
    def draw(
        generator: torch.Generator, *, moved: bool, scale_delta: float = 0.2, shift: float = 1.0, degrees: int = 180, flip: float = 0.5
    ) -> SceneAugmentation:
        """Draw an augmentation. moved: shifted and rotated too, as CO3D is; Hypersim, whose camera is the origin, is not."""
        uniform = 2 * torch.rand(2, 3, generator=generator) - 1
        drawn = SceneAugmentation(
            scale=1 + scale_delta * uniform[0],
            shift=shift * uniform[1],
            degrees=torch.randint(-degrees, degrees + 1, (3,), generator=generator).float(),
            flip=bool(torch.rand((), generator=generator) < flip),
        )
        return drawn if moved else replace(drawn, shift=torch.zeros(3), degrees=torch.zeros(3))

    def transform_points(self, points: Tensor) -> Tensor:
        """Transform points (..., 3)."""
        scale, shift, rotation = (value.to(points) for value in (self.scale, self.shift, rotation_about_axes(self.degrees)))
        moved = (points * scale + shift) @ rotation.mT
        return moved * torch.tensor([-1.0, 1.0, 1.0]).to(points) if self.flip else moved

    def transform_seen(self, seen: Tensor) -> Tensor:
        """Transform maps of points (B, n, n, 3)."""
        moved = self.transform_points(seen)
        return moved.flip(2) if self.flip else moved

    def transform_images(self, images: Tensor) -> Tensor:
        """Mirror images (B, 3, S, S) if the augmentation does."""
        return images.flip(3) if self.flip else images


def rotation_about_axes(degrees: Tensor) -> Tensor:
    """Return the matrix (3, 3) that rotates column vectors by angles (3,) about x, then y, then z, right-handed."""
    rotation = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(degrees.tolist()):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        following, last = (axis + 1) % 3, (axis + 2) % 3
        axis_rotation = torch.eye(3, dtype=torch.float64)
        axis_rotation[following, following], axis_rotation[following, last] = cos, -sin
        axis_rotation[last, following], axis_rotation[last, last] = sin, cos
        rotation = axis_rotation @ rotation
    return rotation
