"""Conversion of cameras: from a person's crop to the image (HMR2) and to the tracker's square frame (PHALP)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
