"""Names and keywords of emoji in many languages from Unicode's CLDR, in the npm package `emojibase-data`."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from training.data.packages import NpmPackage, obtain
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
