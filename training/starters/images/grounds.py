"""Random crops of pictures that fill their frame, photographs and textures, as packages ship them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from training.data.base import Preparation, Sample
from training.data.images import prepared
from training.errors import DataError
from training.settings import Settings
from training.starters.images.stills import Entry, StillPackage, Stills, open_stills


class Grounds(Settings):
    kind: Literal["grounds"] = "grounds"
    packages: list[StillPackage] = Field(min_length=1)
    """The grounds of `part: train` are taken."""
    crop_scale: tuple[float, float] = (0.1, 1.0)
    """Share of a picture's area that a random crop has, in place of the recipe's: a photograph holds many pictures of a network's size."""
    smallest: int = Field(default=96, gt=0)
    """Pixels along the shorter side of the smallest that are taken: enlarged ones teach blur."""


@dataclass(frozen=True)
class GroundImages:
    stills: Stills
    entries: tuple[Entry, ...]
    settings: Grounds
    preparation: Preparation
    unit: str = "images"
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def identity(self) -> Mapping[str, Any]:
        return self.stills.identity()

    def sample(self, index: int, draw: int) -> Sample:
        preprocess, augment = self.preparation.preprocess, self.preparation.augment
        assert preprocess is not None
        if augment.crop_scale is not None:
            augment = augment.model_copy(update={"crop_scale": self.settings.crop_scale})
        image = Image.fromarray(self.stills.read(self.entries[index]))
        return {"pixels": prepared(image, preprocess, augment, draw)}


def open_grounds(settings: Grounds, preparation: Preparation) -> GroundImages:
    """Raises DataError."""
    if preparation.preprocess is None:
        raise DataError("preprocess: the recipe does not say how images are prepared (image_size, mean, std, …)")
    stills = open_stills(settings.packages, preparation.cache)
    entries = tuple(entry for entry in stills.of("train", "ground") if min(entry.shape[:2]) >= settings.smallest)
    if not entries:
        raise DataError(f"data.smallest: no ground has {settings.smallest} pixels along its shorter side")
    return GroundImages(stills, entries, settings, preparation)
