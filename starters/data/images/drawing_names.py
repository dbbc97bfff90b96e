"""Names and keywords of drawings: of emoji in many languages (Unicode's CLDR, npm `emojibase-data`), of clip art from its SVG sources."""

from __future__ import annotations

import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from training.data.packages import DebianPackage, NpmPackage, obtain
from training.errors import DataError
from training.recipe_settings import RecipeSettings

ENGLISH = "en"
_SYMBOLS = 8
"""Group of signs, letters and arrows, most of which change their meaning when mirrored."""
_SIDED = re.compile(r"\b(left|right|leftwards|rightwards|clockwise|counterclockwise|o’clock|thirty|facing)\b")


class EmojiNames(RecipeSettings):
    package: NpmPackage
    languages: list[str] = Field(min_length=1)
    """Languages in addition to English: folders of the package."""


@dataclass(frozen=True)
class Texts:
    """Name and keywords of one drawing in one language."""

    name: str
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmojiEntry:
    texts: Mapping[str, Texts]
    """Language → texts, English included."""
    sided: bool
    """Whether its mirror image has another meaning."""

    @property
    def name(self) -> str:
        return self.texts[ENGLISH].name


def read_names(package: NpmPackage, languages: Sequence[str], cache: Path) -> dict[str, EmojiEntry]:
    """Read the texts of emoji in English and those languages that have a translation, by `slug` of the English name. Raises DataError."""
    root = obtain(package, cache) / "package"
    english = _read_entries(root, ENGLISH)
    others = {language: _read_entries(root, language) for language in languages if language != ENGLISH}
    found = {}
    for code, entry in english.items():
        texts = {ENGLISH: _texts(entry)}
        texts |= {language: _texts(entries[code]) for language, entries in others.items() if entries.get(code, {}).get("label")}
        sided = entry.get("group") == _SYMBOLS or has_sides(entry["label"])
        found[slug(entry["label"])] = EmojiEntry(texts, sided)
    return found


def has_sides(name: str) -> bool:
    """Return whether a name says that its drawing changes its meaning when mirrored."""
    return _SIDED.search(name.lower()) is not None


def slug(name: str) -> str:
    """Reduce a name to letters and digits without accents, since artists write names with hyphens, spaces or neither."""
    bare = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", bare.lower())


def _read_entries(root: Path, language: str) -> dict[str, dict[str, Any]]:
    file = root / language / "data.json"
    try:
        return {entry["hexcode"]: entry for entry in json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read as emoji with their names ({error})") from error


def _texts(entry: Mapping[str, Any]) -> Texts:
    return Texts(entry["label"], tuple(entry.get("tags", ())))


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
