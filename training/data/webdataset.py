"""Images in tar shards: `KEY.jpg` (or png, webp) with the class in `KEY.cls`, as a number or a name, or without labels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from training.data.augment import prepare_image
from training.data.image_folder import read_image
from training.data.shards import ShardMember, Shards, open_shards
from training.data.source import DataSettings, Sample, SamplePreparation, UnreadableSample
from training.errors import DataError

IMAGES = ("jpg", "jpeg", "png", "webp")


class WebDatasetSettings(DataSettings):
    kind: Literal["webdataset"] = "webdataset"
    shards: list[str] = Field(min_length=1)
    """Paths, globs, ranges (`part-{000..127}.tar`) or URLs of fsspec."""
    labels: list[str] | Path = Field(default_factory=list)
    """Names of the classes in order, or a file with one in each line; empty: samples have no labels."""
    several: bool = False
    """`KEY.cls` holds any number of classes, separated by commas."""

    def open(self, preparation: SamplePreparation) -> WebImages:
        preparation.require_preprocess()
        archive = open_shards(self.shards, preparation.cache)
        return WebImages(archive, read_labels(self.labels), self.several, preparation)


@dataclass(frozen=True)
class WebImages:
    archive: Shards
    labels: tuple[str, ...]
    several: bool
    preparation: SamplePreparation
    unit: str = "images"

    @property
    def shards(self) -> Sequence[range]:
        return self.archive.ranges

    def __len__(self) -> int:
        return len(self.archive.members)

    def identity(self) -> Mapping[str, Any]:
        return self.archive.identity()

    def sample(self, index: int, draw: int) -> Sample:
        member = self.archive.members[index]
        pixels = prepare_image(image_of(member), self.preparation, draw)
        return {"pixels": pixels, **self._target(member)} if self.labels else {"pixels": pixels}

    def _target(self, member: ShardMember) -> dict[str, Tensor]:
        content = member.read("cls").decode("utf-8", "replace").strip()
        numbers = [self._number(member, name) for name in (content.split(",") if self.several else [content]) if name.strip()]
        if not self.several:
            return {"label": torch.tensor(numbers[0] if numbers else self._number(member, content))}
        return {"labels": torch.zeros(len(self.labels)).index_fill_(0, torch.tensor(numbers, dtype=torch.int64), 1.0)}

    def _number(self, member: ShardMember, text: str) -> int:
        name = text.strip()
        if name in self.labels:
            return self.labels.index(name)
        if name.isdecimal() and int(name) < len(self.labels):
            return int(name)
        raise UnreadableSample(f"{member.shard}: {member.key}.cls is {name!r}, neither a label nor a number below {len(self.labels)}")


def image_of(member: ShardMember) -> Any:
    """Read an image as RGB on white. Raises UnreadableSample."""
    return read_image(io.BytesIO(member.read(*IMAGES)), f"{member.shard}: {member.key}")


def read_labels(labels: list[str] | Path) -> tuple[str, ...]:
    """Return the names of the classes. Raises DataError."""
    if not isinstance(labels, Path):
        return tuple(labels)
    try:
        lines = labels.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"data.labels: {labels} cannot be read ({error.strerror})") from error
    return tuple(line.strip() for line in lines if line.strip())
