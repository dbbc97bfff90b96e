"""Open Clip Art as Debian ships it: PNG pictures in folders, titles and keywords in the SVG of the same relative path. Public domain."""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_SUBJECT = re.compile(r"<dc:subject\b.*?</dc:subject>", re.DOTALL)
_KEYWORD = re.compile(r"<rdf:li\b[^>]*>(.*?)</rdf:li>", re.DOTALL)
_TITLE = re.compile(r"<dc:title\b[^>]*>(.*?)</dc:title>", re.DOTALL)
_NESTED = re.compile(r"<(dc:(?:subject|publisher|creator|rights))\b.*?</\1>", re.DOTALL)

_MOST_PIXELS = 40_000_000  # a handful of posters would take longer to decode than everything else


class Category(BaseModel):
    """A label and the pictures it covers: all below one of `folders`, narrowed by keywords where a folder is mixed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    folders: list[str]
    keywords: list[str] = []  # a picture needs one of them
    without: list[str] = []  # and none of these

    def covers(self, picture: Picture) -> bool:
        if not any(picture.is_below(folder) for folder in self.folders):
            return False
        if self.keywords and picture.keywords.isdisjoint(self.keywords):
            return False
        return picture.keywords.isdisjoint(self.without)


@dataclass(frozen=True)
class Picture:
    """`path` is relative to the collection's png folder."""

    path: str
    title: str = ""
    keywords: frozenset[str] = frozenset()

    def is_below(self, folder: str) -> bool:
        """Folders are written as `animals/birds`; `animals/` with a final slash leaves out sub-folders."""
        if folder.endswith("/"):
            return str(Path(self.path).parent) == folder[:-1]
        return self.path.startswith(folder + "/")


def read_collection(png: Path, svg: Path) -> list[Picture]:
    """All pictures below `png` in path order, posters left out; those without an SVG have no title and no keywords."""
    return [_read(file.relative_to(png), svg) for file in sorted(png.rglob("*.png")) if _pixels(file) <= _MOST_PIXELS]


def label_of(picture: Picture, categories: Sequence[Category]) -> int | None:
    """The index of the first category that covers the picture: order in the table settles overlaps."""
    return next((index for index, category in enumerate(categories) if category.covers(picture)), None)


def _read(path: Path, svg: Path) -> Picture:
    try:
        text = (svg / path.with_suffix(".svg")).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Picture(path.as_posix())
    subject = _SUBJECT.search(text)
    keywords = _KEYWORD.findall(subject.group()) if subject else []
    # Creator and publisher have dc:title elements of their own; the picture's title is the one outside them.
    title = _TITLE.search(_NESTED.sub("", text))
    return Picture(
        path.as_posix(),
        title=_clean(title.group(1)) if title else "",
        keywords=frozenset(filter(None, (_clean(word).lower() for word in keywords))),
    )


def _pixels(png: Path) -> int:
    """Width times height, from the first chunk of the file."""
    with png.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return int(width * height)


def _clean(text: str) -> str:
    return " ".join(html.unescape(text).split())
