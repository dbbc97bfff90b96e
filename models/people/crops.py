"""Square crops of people, the input of HMR2 (arXiv 2305.20091) and PHALP (arXiv 2112.04477), and conversion of their cameras:
from a person's crop to the image and to the tracker's square frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ASPECT = (192, 256)
"""Width to height of the part of a crop that the network uses."""
SUBPIXEL_STEPS = 32
"""Steps per pixel of OpenCV's sampling positions. The published crops were made with it."""
FINE_STEPS = 1024
"""Steps per pixel that OpenCV first rounds positions to."""
GAUSSIAN_TRUNCATE = 4.0
"""Standard deviations at which scikit-image truncates a Gaussian."""


def expand(boxes: Tensor, aspect: tuple[int, int] = ASPECT) -> Tensor:
    """Grow boxes (N, 4) of x1, y1, x2, y2 around their centres to an aspect of width to height; they never shrink."""
    centres, half = (boxes[:, :2] + boxes[:, 2:]) / 2, _grow_to_aspect(boxes[:, 2:] - boxes[:, :2], aspect) / 2
    return torch.cat([centres - half, centres + half], dim=1)


def square_boxes(boxes: Tensor, aspect: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Grow boxes (N, 4) to an aspect and return the squares around their longer sides: centres (N, 2) and sides (N,).

    HMR2 grows boxes here, PHALP beforehand with `expand`: the squares differ only in the last digit of a side.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    return (boxes[:, :2] + boxes[:, 2:]) / 2, (sizes if aspect is None else _grow_to_aspect(sizes, aspect)).amax(dim=1)


def _grow_to_aspect(sizes: Tensor, aspect: tuple[int, int]) -> Tensor:
    """Grow widths and heights (N, 2) to an aspect. Multiplies before it divides, as published: the last digits decide where pixels are
    sampled."""
    (width, height), (across, down) = sizes.unbind(1), aspect
    return torch.stack([torch.maximum(width, height * across / down), torch.maximum(height, width * down / across)], dim=1)


def crop(image: Tensor, centres: Tensor, sides: Tensor, size: int, *, blur: bool = False) -> Tensor:
    """Resample squares of an image: (H, W, C) of 0..255 → float32 (N, size, size, C), zeros outside the image.

    blur: first smooth each crop that will shrink, by `antialias_sigmas`; such crops are not rounded, all others are whole numbers.

    Bilinear sampling and Gaussian smoothing are separable, so a crop is two matrix products.
    """
    height, width, channels = image.shape
    sigmas = antialias_sigmas(sides, size) if blur else torch.zeros_like(sides)
    columns, rows = _source_positions(centres, sides, size)
    across = _resampling_matrices(columns, sigmas, width)  # (N, size, W)
    down = _resampling_matrices(rows, sigmas, height)  # (N, size, H)
    strips = (down @ image.float().reshape(height, width * channels)).view(len(sides), size, width, channels)
    crops = torch.einsum("nsw,nrwc->nrsc", across, strips)
    return torch.where(sigmas.view(-1, 1, 1, 1) > 0, crops, (crops + 0.5).floor())


def antialias_sigmas(sides: Tensor, size: int) -> Tensor:
    """Return the standard deviation (N,), in pixels of the image, of the Gaussian that prevents aliasing of squares at `size`; 0 for
    none."""
    factor = sides / size / 2
    return torch.where(factor > 1.1, (factor - 1) / 2, 0.0)


def normalise(crops: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Normalise BGR crops (N, S, S, 3) of 0..255 → RGB (N, 3, S, S); mean and std are for 0..1."""
    rgb = crops.flip(-1).movedim(-1, 1)
    return (rgb - 255 * rgb.new_tensor(mean).view(3, 1, 1)) / (255 * rgb.new_tensor(std).view(3, 1, 1))


def _source_positions(centres: Tensor, sides: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the positions in the image at which OpenCV samples columns and rows of the crops, in pixels: (N, size) each, to the last
    digit.

    Its input is a square's centre and a corner in single precision. For columns it rounds start and offset, for rows their sum.
    """
    corners = (centres + sides.unsqueeze(1) / 2).float().double()  # (N, 2)
    centres = centres.float().double()
    starts, steps = 2 * centres - corners, (corners - centres) * 2 / size
    offsets = steps.unsqueeze(2) * torch.arange(size, device=sides.device)  # (N, 2, size)
    columns = (starts[:, :1] * FINE_STEPS).round() + (offsets[:, 0] * FINE_STEPS).round()
    rows = ((starts[:, 1:] + offsets[:, 1]) * FINE_STEPS).round()
    return _to_subpixels(columns), _to_subpixels(rows)


def _to_subpixels(fine: Tensor) -> Tensor:
    return (fine * SUBPIXEL_STEPS / FINE_STEPS + 0.5).floor() / SUBPIXEL_STEPS


def _resampling_matrices(source: Tensor, sigmas: Tensor, length: int) -> Tensor:
    """Return the matrices (N, size, length) that resample a row of pixels at `source` (N, size): Gaussian, then bilinear."""
    left = source.floor()
    fraction = source - left
    radius = (GAUSSIAN_TRUNCATE * sigmas.double() + 0.5).floor()  # (N,)
    reach = int(radius.max()) if len(radius) else 0
    taps = torch.arange(-reach, reach + 1, device=source.device)
    kernel = torch.exp(-0.5 * (taps / sigmas.double().clamp(min=1e-6).unsqueeze(1)) ** 2) * (taps.abs() <= radius.unsqueeze(1))
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (N, taps)
    matrix = torch.zeros(*source.shape, length, dtype=torch.float64, device=source.device)
    for pixel, weight in ((left, 1 - fraction), (left + 1, fraction)):
        inside = weight * ((pixel >= 0) & (pixel < length))
        index = (pixel.long().unsqueeze(2) + taps).clamp(0, length - 1)  # edge pixels repeat
        matrix.scatter_add_(2, index, inside.unsqueeze(2) * kernel.unsqueeze(1))
    return matrix.float()


FOCAL = 5000.0
"""Focal length in pixels, of a crop at the network's size and of the tracker's frame."""


def crop_translation(camera: Tensor, side: Tensor | float, focal: float = FOCAL) -> Tensor:
    """Return the translation (..., 3) of a body from the weak-perspective camera (..., 3) of its crop: scale, x, y.

    side: side of the crop in pixels. focal: focal length in pixels of the camera that the translation refers to.
    """
    scale, x, y = camera.unbind(-1)
    return torch.stack([x, y, 2 * focal / (side * scale + 1e-9)], dim=-1)


def image_focal(width: float, height: float, crop: int, focal: float = FOCAL) -> float:
    """Return the focal length in pixels of an image whose longer side spans the view that a crop of `crop` pixels has at `focal`."""
    return focal / crop * max(width, height)


def image_translation(camera: Tensor, centres: Tensor, sides: Tensor, width: float, height: float, focal: float) -> Tensor:
    """Return translations (N, 3) in the image's camera from the cameras (N, 3) of crops.

    centres, sides: (N, 2) and (N,), of the crops, in pixels of the image.
    """
    scale, x, y = camera.unbind(-1)
    extent = sides * scale + 1e-9
    off_axis = 2 * (centres - centres.new_tensor([width / 2, height / 2])) / extent.unsqueeze(-1)
    return torch.stack([off_axis[:, 0] + x, off_axis[:, 1] + y, 2 * focal / extent], dim=-1)


def project(points: Tensor, translation: Tensor, focal: float) -> Tensor:
    """Project points (..., P, 3) of bodies at `translation` (..., 3) → (..., P, 2), in the unit of `focal`, 0 on the axis."""
    placed = points + translation.unsqueeze(-2)
    return placed[..., :2] / placed[..., 2:] * focal


@dataclass(frozen=True)
class SquareFrame:
    """PHALP's frame: the image padded to a square and resized to `side` pixels."""

    width: int
    height: int
    side: int = 256
    focal: float = FOCAL

    @property
    def padded_side(self) -> int:
        return max(self.width, self.height)

    def translation(self, camera: Tensor, boxes: Tensor) -> Tensor:
        """Return translations (N, 3) in the frame's camera from the cameras (N, 3) of crops.

        boxes: (N, 4) of x1, y1, x2, y2 in pixels of the image.
        """
        corner = boxes.new_tensor([(self.padded_side - self.width) // 2, (self.padded_side - self.height) // 2])
        ratio = self.side / self.padded_side
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 + corner) * ratio
        sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) * ratio
        translation = crop_translation(camera, sides, self.focal)
        off_axis = (centres - self.side / 2) * translation[:, 2:] / self.focal
        return translation + torch.cat([off_axis, torch.zeros_like(off_axis[:, :1])], dim=1)

    def project_joints(self, joints: Tensor, translation: Tensor) -> Tensor:
        """Project joints (N, J, 3) at `translation` (N, 3) → (N, J, 2), in units of the side, 0 in the corner."""
        return project(joints, translation, self.focal / self.side) + 0.5
