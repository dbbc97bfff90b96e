"""Training data of MCC: renders of meshes from packages and of composed shapes, with depth and surface points.

Everything is rendered once, into shards in the cache; a stopped command continues at the first missing shard. Objects are held out by
category. The errors of the depth sensor are drawn for every sample.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.arrays import UInt8Array
from models.bundle_schema import Preprocess
from models.systems.mcc.scene_inputs import normalise_points
from starters.data.renders.furniture import Library, pieces
from starters.data.renders.meshes import PaintedMesh, Up, compose_shapes, draw_paint, paint_mesh, read, read_texture
from starters.data.renders.render_views import Light, add_sensor_noise, surface_of, view_dtype, view_of
from training.checkpoint import replacing, write_atomically
from training.data.packages import LicensedPackage, obtain
from training.data.rgbd_scenes import unproject
from training.data.source import DataSettings, Sample, SamplePreparation, UnreadableSample
from training.errors import DataError
from training.recipe_settings import RecipeSettings

Part = Literal["train", "val", "test"]

_REVISION = 2
"""Revision of the renderer: shards of other revisions are not read."""
_SHARD = 16
"""Number of objects in a shard."""


class Objects(RecipeSettings):
    """Files of one category, all of them trained on or all held out."""

    category: str
    files: list[str] = Field(min_length=1)
    """Patterns below the package's folder."""
    part: Part = "train"
    views: int = Field(gt=0)
    """Views of each object."""
    up: Up = "any"
    texture: str | None = None
    """Path of the texture if files do not name one; `{stem}` is the file's name without suffix."""


class MeshPackage(LicensedPackage):
    """One package, its licence, and the objects that are used."""

    objects: list[Objects] = Field(default_factory=list)
    libraries: list[Library] = Field(default_factory=list)
    paints: list[str] = Field(default_factory=list)
    """Textures for meshes of any package that have no colours."""


class Renders(DataSettings):
    kind: Literal["renders"] = "renders"
    packages: list[MeshPackage] = Field(default_factory=list)
    composed: int = Field(default=0, ge=0)
    """Number of objects composed of simple shapes, for training only."""
    composed_views: int = Field(default=4, gt=0)
    part: Part = "train"
    seen_size: int = Field(default=64, gt=0)
    """Side of the map of visible points."""
    surface_points: int = Field(default=20_000, gt=0)
    """Surface points of each sample, of the 20,000 of its object."""
    sensor: bool = True
    """Whether visible points have the errors of a depth sensor."""
    back: Literal[True] | None = None
    """Whether to render the point at which the ray of each pixel exits the object, and its colour."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _held_out_by_category(self) -> Self:
        parts: dict[str, set[str]] = {}
        for package in self.packages:
            for objects in package.objects:
                parts.setdefault(objects.category, set()).add(objects.part)
            for library in package.libraries:
                for category, part in library.parts.items():
                    parts.setdefault(category, set()).add(part)
        both = sorted(category for category, found in parts.items() if len(found) > 1)
        if both:
            raise ValueError(f"packages: category {', '.join(both)} belongs to one of train, val and test alone")
        return self

    def open(self, preparation: SamplePreparation) -> RenderedScenes:
        """Render the shards that the cache lacks. Raises DataError."""
        preprocess = preparation.require_preprocess()
        shards = render(self, preprocess.image_size, preparation.cache)
        if not sum(len(shard.views) for shard in shards):
            raise DataError(f"data.packages: no object of part {self.part} can be rendered")
        return RenderedScenes(shards, self, preprocess)


@dataclass(frozen=True)
class Item:
    """Object to render."""

    name: str
    category: str
    views: int
    up: Up = "any"
    file: Path | None = None
    """None for a composed shape."""
    texture: Path | None = None


@dataclass(frozen=True)
class Shard:
    """Renders of a few objects."""

    names: tuple[str, ...]
    categories: tuple[str, ...]
    left_out: Mapping[str, str]
    """Object → the reason why it cannot be rendered."""
    surfaces: npt.NDArray[np.void]
    """(objects, points)."""
    views: npt.NDArray[np.void]
    """(V,); `object` counts within the shard."""


@dataclass(frozen=True)
class RenderedScenes:
    rendered: tuple[Shard, ...]
    settings: Renders
    preprocess: Preprocess
    labels: tuple[str, ...] = ()
    unit: str = "views"

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([len(shard.views) for shard in self.rendered])

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Name of each view's object."""
        return tuple(shard.names[row] for shard in self.rendered for row in shard.views["object"])

    @cached_property
    def categories(self) -> Mapping[str, str]:
        """Object → category."""
        return {name: category for shard in self.rendered for name, category in zip(shard.names, shard.categories, strict=True)}

    def identity(self) -> Mapping[str, Any]:
        return {"objects": len(self.categories), "listing": hashlib.sha256("\n".join(self.objects).encode()).hexdigest()}

    def sample(self, index: int, draw: int) -> Sample:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.rendered[number]
        view = shard.views[index - (int(self._ends[number - 1]) if number else 0)]
        generator = np.random.default_rng([self.settings.seed, index, draw])
        try:
            return self._sample(view, shard.surfaces[view["object"]], generator)
        except ValueError as error:
            raise UnreadableSample(f"view {index} of {shard.names[view['object']]}: {error}") from error

    def _sample(self, view: npt.NDArray[np.void], surface: npt.NDArray[np.void], generator: np.random.Generator) -> Sample:
        side = self.settings.seen_size
        depth = torch.from_numpy(add_sensor_noise(view["depth"], generator) if self.settings.sensor else np.array(view["depth"]))
        focal, centre = float(view["focal"]) * side, (float(view["centre"][0]) * side, float(view["centre"][1]) * side)
        seen, scale, offset = normalise_points(unproject(depth, (focal, focal), centre))  # (n, n, 3)
        first = int(generator.integers(len(surface)))  # they are in random order
        chosen = (first + np.arange(min(self.settings.surface_points, len(surface)))) % len(surface)
        points, colours = lit_surface(view, surface[chosen])
        valid = seen.isfinite().all(dim=-1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.preprocess.mean, self.preprocess.std))
        image = torch.from_numpy(np.array(view["image"])).permute(2, 0, 1).float() / 255
        behind: Sample = {}
        if self.settings.back:
            back = unproject(torch.from_numpy(np.array(view["back"])), (focal, focal), centre) / scale - offset
            colour = torch.from_numpy(np.array(view["back_colour"])).float() / 255
            behind = {"back": back.masked_fill(~valid.unsqueeze(-1), 0.0), "back_colours": colour}  # (n, n, 3) each
        return {
            "pixels": (image - mean) / std,
            "points": seen.masked_fill(~valid.unsqueeze(-1), 0.0),
            "valid": valid,
            "surface": points / scale - offset,  # (G, 3)
            "colours": colours,
            "camera": -offset,  # (3,), where it stands among the normalised points
            **behind,
        }


def lit_surface(view: npt.NDArray[np.void], surface: npt.NDArray[np.void]) -> tuple[Tensor, Tensor]:
    """Return surface points in the camera's frame and their colours under the view's light, (G, 3) each."""
    rotation = np.asarray(view["rotation"])
    light = Light(np.asarray(view["light"]), float(view["ambient"]), np.asarray(view["tint"]))
    points = surface["point"].astype(np.float32) @ rotation.T + view["translation"]
    normals = np.asarray(surface["normal"] / np.float32(127), np.float32) @ rotation.T
    colours = np.asarray(surface["colour"] / np.float32(255), np.float32)
    return torch.from_numpy(points), torch.from_numpy(light.shine(colours, normals))


def render(settings: Renders, side: int, cache: Path) -> tuple[Shard, ...]:
    """Render and read all shards of a part; existing ones are kept. Raises DataError."""
    items, paints = list_objects(settings, cache)
    folder = cache / f"renders-{_digest(settings, side, items)}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [items[first : first + _SHARD] for first in range(0, len(items), _SHARD)]
    pictures: list[UInt8Array] = []
    for number, part in enumerate(parts):
        if not (folder / f"{number:04}.json").is_file():
            pictures = pictures or [read_texture(file) for file in paints]
            print(f"rendering shard {number + 1} of {len(parts)} ({settings.part}): {part[0].name} …", file=sys.stderr, flush=True)
            _write(folder, number, part, pictures, settings, side)
    return tuple(_read(folder, number) for number in range(len(parts)))


def _digest(settings: Renders, side: int, items: Sequence[Item]) -> str:
    packages = [entry.package.sha256 for entry in settings.packages]
    objects = [[item.name, item.category, item.views, item.texture.name if item.texture else None, *_standing(item)] for item in items]
    paints = [entry.paints for entry in settings.packages]
    behind = ["back"] if settings.back else []  # shards without it are still read
    content = json.dumps([_REVISION, side, settings.seen_size, settings.seed, packages, paints, objects, *behind])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _standing(item: Item) -> list[str]:
    """Return nothing for objects without orientation, so that the digests of older shards stay the same."""
    return [] if item.up == "any" else [item.up]


def list_objects(settings: Renders, cache: Path) -> tuple[list[Item], list[Path]]:
    """List the objects of a part, and the textures for those without colours. Raises DataError."""
    items: list[Item] = []
    paints: list[Path] = []
    for entry in settings.packages:
        chosen = [objects for objects in entry.objects if objects.part == settings.part]
        if not chosen and not entry.paints and not entry.libraries:
            continue
        root = obtain(entry.package, cache)
        for library in entry.libraries:
            views = library.views if settings.part == "train" else library.held_out_views or library.views
            items += [
                Item(f"{entry.package.name}/{piece.file.relative_to(root)}", piece.category, views, library.up, piece.file)
                for piece in pieces(library, root)
                if library.parts.get(piece.category, "train") == settings.part
            ]
        paints += [file for pattern in entry.paints for file in _matching_files(root, pattern, entry)]
        for objects in chosen:
            for file in (file for pattern in objects.files for file in _matching_files(root, pattern, entry)):
                texture = root / objects.texture.format(stem=file.stem) if objects.texture else None
                name = f"{entry.package.name}/{file.relative_to(root).as_posix()}"
                items.append(Item(name, objects.category, objects.views, objects.up, file, texture))
    if settings.part == "train":
        items += [Item(f"composed/{number}", "composed shapes", settings.composed_views) for number in range(settings.composed)]
    return items, paints


def creators(settings: Renders, cache: Path) -> dict[str, list[str]]:
    """Return the creators of library objects to credit, by licence, in alphabetical order. Raises DataError."""
    found: dict[str, set[str]] = {}
    for entry in settings.packages:
        for library in entry.libraries:
            made = {piece.creator for piece in pieces(library, obtain(entry.package, cache))}
            found.setdefault(library.license, set()).update(made)
    return {license: sorted(names) for license, names in found.items()}


def _matching_files(root: Path, pattern: str, entry: MeshPackage) -> list[Path]:
    """Return the files that match a pattern. Raises DataError if there are none."""
    files = sorted(root.glob(pattern))
    if not files:
        raise DataError(f"data.packages: {entry.package.name} {entry.package.version} has no file {pattern}")
    return files


def _write(folder: Path, number: int, items: Sequence[Item], pictures: Sequence[UInt8Array], settings: Renders, side: int) -> None:
    """Render one shard; its JSON file, written last, marks it as complete."""
    surfaces, views = [], []
    names: list[str] = []
    categories: list[str] = []
    left_out: dict[str, str] = {}
    for item in items:
        generator = np.random.default_rng([settings.seed, *hashlib.sha256(item.name.encode()).digest()])
        try:
            mesh = _mesh(item, generator, pictures)
            surface = surface_of(mesh, generator)
        except (ValueError, OSError, KeyError, IndexError, TypeError) as error:  # trimesh raises all of these for broken files
            left_out[item.name] = str(error)
            continue
        for view in (view_of(mesh, generator, side, settings.seen_size, item.up, back=bool(settings.back)) for _ in range(item.views)):
            if view is not None:
                view["object"] = len(names)
                views.append(view)
        surfaces.append(surface)
        names.append(item.name)
        categories.append(item.category)
    _save(folder / f"{number:04}-surfaces.npy", np.stack(surfaces) if surfaces else np.zeros((0, 0)))
    dtype = view_dtype(side, settings.seen_size, bool(settings.back))
    _save(folder / f"{number:04}-views.npy", np.stack(views) if views else np.zeros(0, dtype))
    described = {"names": names, "categories": categories, "left_out": left_out}
    write_atomically(folder / f"{number:04}.json", json.dumps(described))


def _save(file: Path, array: npt.NDArray[Any]) -> None:
    with replacing(file) as partial, partial.open("wb") as opened:
        np.save(opened, array)


def _read(folder: Path, number: int) -> Shard:
    described = json.loads((folder / f"{number:04}.json").read_text(encoding="utf-8"))
    surfaces, views = (np.load(folder / f"{number:04}-{kind}.npy", mmap_mode="r") for kind in ("surfaces", "views"))
    return Shard(tuple(described["names"]), tuple(described["categories"]), described["left_out"], surfaces, views)


def _mesh(item: Item, generator: np.random.Generator, pictures: Sequence[UInt8Array]) -> PaintedMesh:
    paint = draw_paint(generator, pictures)
    return paint_mesh(compose_shapes(generator), paint) if item.file is None else read(item.file, paint, item.texture)
