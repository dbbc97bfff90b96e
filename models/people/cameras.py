"""From the camera of a person's crop to that of the image (HMR2) and of the tracker's square frame (PHALP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FOCAL = 5000.0
"""Pixels, for a crop of the network's size or the tracker's frame."""


def crop_translation(camera: Tensor, side: Tensor | float, focal: float = FOCAL) -> Tensor:
    """A weak-perspective camera (..., 3) of scale, x, y in a crop of `side` pixels → the body's place (..., 3).

    focal: focal length in pixels of the camera that the place refers to.
    """
    scale, x, y = camera.unbind(-1)
    return torch.stack([x, y, 2 * focal / (side * scale + 1e-9)], dim=-1)


def image_focal(width: float, height: float, crop: int, focal: float = FOCAL) -> float:
    """Pixels, for an image whose longer side spans the view that a crop of `crop` pixels has at `focal`."""
    return focal / crop * max(width, height)


def image_translation(camera: Tensor, centres: Tensor, sides: Tensor, width: float, height: float, focal: float) -> Tensor:
    """(N, 3) of crops at `centres` (N, 2) with `sides` (N,), in pixels of the image → (N, 3) before its camera."""
    scale, x, y = camera.unbind(-1)
    extent = sides * scale + 1e-9
    off_axis = 2 * (centres - centres.new_tensor([width / 2, height / 2])) / extent.unsqueeze(-1)
    return torch.stack([off_axis[:, 0] + x, off_axis[:, 1] + y, 2 * focal / extent], dim=-1)


def project(points: Tensor, translation: Tensor, focal: float) -> Tensor:
    """Points (..., P, 3) of bodies at `translation` (..., 3) → (..., P, 2), in the unit of `focal`, 0 on the axis."""
    placed = points + translation.unsqueeze(-2)
    return placed[..., :2] / placed[..., 2:] * focal


@dataclass(frozen=True)
class SquareFrame:
    """PHALP's frame: the image padded to a square and seen at `side` pixels."""

    width: int
    height: int
    side: int = 256
    focal: float = FOCAL

    @property
    def padded(self) -> int:
        return max(self.width, self.height)

    def translation(self, camera: Tensor, boxes: Tensor) -> Tensor:
        """(N, 3) of crops around boxes (N, 4) of x1, y1, x2, y2 in pixels of the image → (N, 3)."""
        corner = boxes.new_tensor([(self.padded - self.width) // 2, (self.padded - self.height) // 2])
        ratio = self.side / self.padded
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 + corner) * ratio
        sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) * ratio
        place = crop_translation(camera, sides, self.focal)
        off_axis = (centres - self.side / 2) * place[:, 2:] / self.focal
        return place + torch.cat([off_axis, torch.zeros_like(off_axis[:, :1])], dim=1)

    def points(self, joints: Tensor, translation: Tensor) -> Tensor:
        """Joints (N, J, 3) at `translation` (N, 3) → (N, J, 2), in units of the side, 0 in the corner."""
        return project(joints, translation, self.focal / self.side) + 0.5
