"""Names and keywords of emoji in many languages, as Unicode's CLDR has them: the npm package `emojibase-data`."""

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
from training.recipe_settings import Settings

ENGLISH = "en"
_SYMBOLS = 8
"""The group of signs, letters and arrows, most of which mean something else in the mirror."""
_SIDED = re.compile(r"\b(left|right|leftwards|rightwards|clockwise|counterclockwise|o’clock|thirty|facing)\b")


class EmojiNames(Settings):
    package: NpmPackage
    languages: list[str] = Field(min_length=1)
    """Languages that are learnt, besides English: folders of the package."""


@dataclass(frozen=True)
class Texts:
    """Name and keywords of one drawing in one language."""

    name: str
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Named:
    texts: Mapping[str, Texts]
    """Language → texts; English is always there."""
    sided: bool
    """Whether its mirror image means something else."""

    @property
    def name(self) -> str:
        return self.texts[ENGLISH].name


def read_names(package: NpmPackage, languages: Sequence[str], cache: Path) -> dict[str, Named]:
    """`slug` of the English name → texts in English and these languages, as far as they are translated. Raises DataError."""
    root = obtain(package, cache) / "package"
    english = _by_code(root, ENGLISH)
    others = {language: _by_code(root, language) for language in languages if language != ENGLISH}
    found = {}
    for code, entry in english.items():
        texts = {ENGLISH: _texts(entry)}
        texts |= {language: _texts(entries[code]) for language, entries in others.items() if entries.get(code, {}).get("label")}
        sided = entry.get("group") == _SYMBOLS or has_sides(entry["label"])
        found[slug(entry["label"])] = Named(texts, sided)
    return found


def has_sides(name: str) -> bool:
    """Whether a name says that its drawing means something else in the mirror."""
    return _SIDED.search(name.lower()) is not None


def slug(name: str) -> str:
    """Letters and digits alone, without accents: artists write a name with hyphens, in one word or as it is."""
    bare = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", bare.lower())


def _by_code(root: Path, language: str) -> dict[str, dict[str, Any]]:
    file = root / language / "data.json"
    try:
        return {entry["hexcode"]: entry for entry in json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read as emoji with their names ({error})") from error


def _texts(entry: Mapping[str, Any]) -> Texts:
    return Texts(entry["label"], tuple(entry.get("tags", ())))
