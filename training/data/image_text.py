"""Images with captions: a folder with `captions.jsonl`, or tar shards with `KEY.jpg` and `KEY.txt`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image
from pydantic import model_validator

from training.data.augment import prepare_image
from training.data.captions import CaptionTokens, WordSettings, open_words
from training.data.image_folder import read_image
from training.data.shards import ShardMember, open_shards
from training.data.source import DataSettings, Sample, SamplePreparation
from training.data.webdataset import image_of
from training.errors import DataError

CAPTIONS = "captions.jsonl"


class PairsSettings(DataSettings):
    kind: Literal["pairs"] = "pairs"
    path: Path | None = None
    """A folder with `captions.jsonl`: lines {"image": FILE, "caption": TEXT}, files from the folder."""
    shards: list[str] | None = None
    """Or shards, as in kind webdataset."""
    words: WordSettings

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.shards is None):
            raise ValueError("give one of path and shards")
        return self

    def open(self, preparation: SamplePreparation) -> ImagesWithCaptions:
        preparation.require_preprocess()
        if self.shards is not None:
            archive = open_shards(self.shards, preparation.cache)
            texts = [member.read("txt").decode("utf-8", "replace").strip() for member in archive.members]
            words = open_words(self.words, preparation.words, texts)
            return ImagesWithCaptions(archive.members, words, preparation, archive.ranges, archive.identity())
        assert self.path is not None
        files, texts = _read(self.path)
        words = open_words(self.words, preparation.words, texts)
        listing = {"files": len(files), "listing": digest(zip((file.name for file in files), map(_size, files), texts, strict=True))}
        return ImagesWithCaptions(files, words, preparation, (range(len(files)),), listing)


@dataclass(frozen=True)
class ImagesWithCaptions:
    images: tuple[Path | ShardMember, ...]
    captions: CaptionTokens
    """Captions of all images, to be read without these: curation chooses among them."""
    preparation: SamplePreparation
    shards: tuple[range, ...]
    listing: Mapping[str, Any]
    unit: str = "pairs"
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def identity(self) -> Mapping[str, Any]:
        return {**self.listing, **self.captions.identity()}

    def sample(self, index: int, draw: int) -> Sample:
        source = self.images[index]
        image: Image.Image = image_of(source) if isinstance(source, ShardMember) else read_image(source)
        words = self.captions.read(torch.tensor([index]))[0]
        return {"pixels": prepare_image(image, self.preparation, draw), "words": words}


def _size(file: Path) -> int | None:
    """Return the size in bytes; None for missing files, which are counted as unreadable samples later."""
    return file.stat().st_size if file.is_file() else None


def _read(folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    rows = read_jsonl(folder / CAPTIONS, ("image", "caption"))
    return tuple(folder / row["image"] for row in rows), [str(row["caption"]) for row in rows]


def read_jsonl(file: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Lines of JSON objects that have these fields. Raises DataError naming file and line."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [name for name in fields if name not in row]
        except (ValueError, TypeError) as error:
            raise DataError(f"{file}:{number}: no JSON object ({error})") from error
        if missing:
            raise DataError(f"{file}:{number}: {', '.join(missing)} is missing")
        rows.append(row)
    if not rows:
        raise DataError(f"{file}: has no lines")
    return rows


def digest(rows: Iterable[object]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(f"{row}\n".encode())
    return total.hexdigest()
