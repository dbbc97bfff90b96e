"""Titles and keywords of Open Clip Art, from the SVG sources of its PNG files (Debian's `openclipart-svg`)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from starters.data.images.emoji_names import Texts
from training.data.packages import DebianPackage, obtain
from training.recipe_settings import RecipeSettings

_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_WORK = "{http://web.resource.org/cc/}Work"
_NO_TITLE = re.compile(r"clip ?art|collection|icons$|symbol signs|theme|untitled|unknown|^no name|gramastar", re.IGNORECASE)
_NO_KEYWORD = re.compile(r"hash|^0x|[0-9]{3}|unsorted|clip ?art|theme|icon", re.IGNORECASE)
_SERIES = frozenset({"aiga", "bw", "ganson", "architetto", "franc", "fran"})
"""Words in file names that stand for a collection or an artist."""
_MAX_TITLE_CHARS = 60
"""Maximum length of a title in characters; longer ones are descriptions."""


class Titles(RecipeSettings):
    package: DebianPackage
    folder: str
    """Folder of the package's SVG files, with the paths of the PNG files."""
    common: int = Field(default=6, gt=0)
    """Maximum number of drawings with the same title; more common titles say too little."""


def read_titles(settings: Titles, names: Iterable[str], cache: Path) -> dict[str, Texts]:
    """Return title and keywords by path of the PNG file, for drawings with a meaningful title. Raises DataError."""
    root = obtain(settings.package, cache) / settings.folder
    read = {name: _read((root / name).with_suffix(".svg")) for name in names}
    common = Counter(texts.name.lower() for texts in read.values())
    return {name: texts for name, texts in read.items() if texts.name and common[texts.name.lower()] <= settings.common}


def _read(file: Path) -> Texts:
    """Read title and keywords of a file; its name replaces a title that is missing or names a collection."""
    try:
        work = next(ET.parse(file).iter(_WORK), None)
    except (OSError, ET.ParseError):
        work = None
    if work is None:
        return Texts(_from_stem(file.stem, set()))
    written = work.findtext(f"{_DC}title") or ""
    artists = {_plain(agent.text or "").lower() for agent in work.iter(f"{_DC}title") if agent.text != written}
    title = _plain(written)
    if not title or len(title) > _MAX_TITLE_CHARS or _NO_TITLE.search(title) or title.lower() in artists:
        title = _from_stem(file.stem, artists)
    keywords = {_plain(item.text or "").lower() for subject in work.iter(f"{_DC}subject") for item in subject.iter(f"{_RDF}li")}
    return Texts(title, tuple(sorted(word for word in keywords - artists if len(word) > 2 and not _NO_KEYWORD.search(word))))


def _from_stem(stem: str, artists: set[str]) -> str:
    """Return the words of a file's name without the artist's name, which it may contain in part."""
    names = " ".join(artists).split()
    words = [word for word in _plain(stem.replace("-", " ")).split() if len(word) > 1]
    return " ".join(word for word in words if word.lower() not in _SERIES and not any(name.startswith(word.lower()) for name in names))


def _plain(text: str) -> str:
    """Remove punctuation and the numbers of a series from a text."""
    return " ".join(re.sub(r"[_\d()\[\]#/\\]+", " ", text).split())
