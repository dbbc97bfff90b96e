"""Images with depth, and the surfaces that they show in part: the data of MCC.

A scene is a folder: `image.png` (or jpg); `points.npy`, the point seen in each pixel, float (H, W, 3), not finite where there is none, or
`depth.npy`, float (H, W) along the optical axis, 0 for missing values, with `camera.json` ({"focal": [fx, fy], "centre": [cx, cy]} in
pixels); `mask.png`, not 0 on the object, if there is one; `surface.npy`, true points and their colours in 0..1, float (G, 6).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from models.bundle_schema import Preprocess
from models.systems.mcc.scene_inputs import capture_to_view, normalise_points, resize, resize_mask
from training.data.image_folder import read_image
from training.data.image_text import digest
from training.data.source import DataSettings, Sample, SamplePreparation, UnreadableSample
from training.errors import DataError

SURFACE = "surface.npy"


class RGBDSettings(DataSettings):
    kind: Literal["rgbd"] = "rgbd"
    path: Path
    """A folder of scenes."""
    surface_points: int = Field(default=20_000, gt=0)
    """True points of each sample, drawn from those of the scene."""
    seen_size: int = Field(default=112, gt=0)
    """Side of the map of seen points."""
    normalise: bool = True
    """Divide by the spread of the seen points and centre on them, crop to the object; False: coordinates and images as they are."""
    repeat: int = Field(default=1, gt=0)
    """Samples of each scene in an epoch."""

    def open(self, preparation: SamplePreparation) -> RGBDScenes:
        preprocess = preparation.require_preprocess()
        if not self.path.is_dir():
            raise DataError(f"data.path: {self.path} is not a folder")
        scenes = tuple(sorted(file.parent for file in self.path.glob(f"*/{SURFACE}")))
        if not scenes:
            raise DataError(f"data.path: {self.path} has no scenes, which are folders with {SURFACE}")
        return RGBDScenes(scenes, self, preprocess)


@dataclass(frozen=True)
class RGBDScenes:
    scenes: tuple[Path, ...]
    settings: RGBDSettings
    preprocess: Preprocess
    labels: tuple[str, ...] = ()
    unit: str = "scenes"

    def __len__(self) -> int:
        return len(self.scenes) * self.settings.repeat

    def identity(self) -> Mapping[str, Any]:
        return {"scenes": len(self.scenes), "listing": digest(f"{scene.name} {(scene / SURFACE).stat().st_size}" for scene in self.scenes)}

    def sample(self, index: int, draw: int) -> Sample:
        scene = self.scenes[index % len(self.scenes)]
        try:
            return self._sample(scene, draw)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UnreadableSample(f"{scene}: {error}") from error

    def _sample(self, scene: Path, draw: int) -> Sample:
        rgb = torch.from_numpy(np.array(read_image(_image(scene)))).float() / 255  # (H, W, 3)
        points = _points(scene, rgb.shape[0], rgb.shape[1])
        mask_file = scene / "mask.png"
        mask = torch.from_numpy(np.array(Image.open(mask_file).convert("L"))) if mask_file.is_file() else torch.ones(rgb.shape[:2])
        surface = torch.from_numpy(np.load(scene / SURFACE, allow_pickle=False)).float()  # (G, 6)
        size, seen_size = self.preprocess.image_size, self.settings.seen_size
        if self.settings.normalise:
            view = capture_to_view(rgb, points, mask, image_size=size, seen_size=seen_size)
            image, seen, true = view.image[0], view.seen[0], surface[:, :3] / view.scale - view.centre
        else:
            objects = resize_mask(mask, rgb.shape[0], rgb.shape[1])
            normalise_points(points)  # complains where there is nothing to see
            image = resize(rgb, size)[0].permute(2, 0, 1)
            seen, true = resize(points.masked_fill(~objects.unsqueeze(-1), torch.inf), seen_size)[0], surface[:, :3]
        chosen = torch.randint(len(surface), (self.settings.surface_points,), generator=torch.Generator().manual_seed(draw))
        valid = seen.isfinite().all(dim=-1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.preprocess.mean, self.preprocess.std))
        return {
            "pixels": (image - mean) / std,
            "points": seen.masked_fill(~valid.unsqueeze(-1), 0.0),  # (n, n, 3)
            "valid": valid,
            "surface": true[chosen],  # (G, 3)
            "colours": surface[chosen, 3:],
        }


def _image(scene: Path) -> Path:
    return next((scene / name for name in ("image.png", "image.jpg", "image.jpeg") if (scene / name).is_file()), scene / "image.png")


def _points(scene: Path, height: int, width: int) -> Tensor:
    """Read points (H, W, 3), or compute them from depth. Raises ValueError."""
    if (scene / "points.npy").is_file():
        points = torch.from_numpy(np.load(scene / "points.npy", allow_pickle=False)).float()
    else:
        depth = torch.from_numpy(np.load(scene / "depth.npy", allow_pickle=False)).float()
        points = unproject(depth, **json.loads((scene / "camera.json").read_text(encoding="utf-8")))
    if points.shape != (height, width, 3):
        raise ValueError(f"points of shape {tuple(points.shape)} where the image has {(height, width, 3)}")
    return points


def unproject(depth: Tensor, focal: tuple[float, float], centre: tuple[float, float]) -> Tensor:
    """Unproject depth (H, W) to points (H, W, 3), x right, y down, z forward; infinite for depths that are 0 or not finite."""
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=depth.dtype) + 0.5 for side in depth.shape), indexing="ij")
    rays = torch.stack([(columns - centre[0]) / focal[0], (rows - centre[1]) / focal[1], torch.ones_like(depth)], dim=-1)
    is_known = depth.isfinite() & (depth > 0)
    return (rays * depth.unsqueeze(-1)).masked_fill(~is_known.unsqueeze(-1), torch.inf)
