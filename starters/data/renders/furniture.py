"""Libraries of Sweet Home 3D (`.sh3f`): archives of meshes with a catalogue of names, categories and creators."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import Field

from starters.data.renders.meshes import Up
from training.errors import DataError
from training.recipe_settings import RecipeSettings

CATALOGUE = "PluginFurnitureCatalog.properties"
ENTRY = re.compile(r"(\w+)#(\d+)\s*[=:]\s*(.*)")


class Library(RecipeSettings):
    """One archive of a package, its licence, and the objects that are used."""

    file: str
    """Path below the package's folder."""
    license: str
    views: int = Field(gt=0)
    """Views of each object."""
    held_out_views: int | None = Field(default=None, gt=0)
    """Views of each held-out object; None: `views`."""
    up: Up = "y"
    parts: dict[str, Literal["val", "test"]] = Field(default_factory=dict)
    """Categories that are held out; all others are trained on."""
    without: list[str] = Field(default_factory=list)
    """Patterns of categories and of names that are left out."""


@dataclass(frozen=True)
class FurniturePiece:
    name: str
    category: str
    creator: str
    file: Path


def pieces(library: Library, root: Path) -> list[FurniturePiece]:
    """List the objects of a library of the package in `root`; unpack the library first. Raises DataError."""
    folder = unpack(root / library.file)
    entries: dict[int, dict[str, str]] = defaultdict(dict)
    for field, number, value in _read(folder / CATALOGUE):
        entries[number][field] = value
    found = [
        FurniturePiece(entry["name"], entry["category"], entry.get("creator", "unknown"), folder / entry["model"].lstrip("/"))
        for _, entry in sorted(entries.items())
        if {"name", "category", "model"} <= entry.keys()
    ]
    left = [piece for piece in found if not any(fnmatchcase(text, one) for one in library.without for text in (piece.name, piece.category))]
    if not left:
        raise DataError(f"{library.file}: its catalogue has no object besides those that `without` leaves out")
    return left


def _read(catalogue: Path) -> Iterator[tuple[str, int, str]]:
    """Yield field, number and value of each line, in Java's properties format, of which catalogues use single lines and Unicode escapes."""
    try:
        lines = catalogue.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise DataError(f"{catalogue}: cannot be read ({error.strerror})") from error
    for line in lines:
        if match := ENTRY.fullmatch(line.strip()):
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), match[3])
            yield match[1], int(match[2]), value


def unpack(archive: Path) -> Path:
    """Unpack a library the first time and return the folder of its files, next to the archive. Raises DataError."""
    folder = archive.with_name(archive.name + ".unpacked")
    if folder.is_dir():
        return folder
    staging = archive.with_name(archive.name + ".unpacking")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(staging)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: is not a library of Sweet Home 3D ({error})") from error
    staging.rename(folder)
    return folder
