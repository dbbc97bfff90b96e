"""The recipe's data as the phases use it: a labelled training, validation and test split, and what there is to pre-train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.bundle import sha256_of
from training.data import groups, openclipart, packages, pictures
from training.data.openclipart import Picture
from training.data.pictures import Pixels
from training.recipe import Data


@dataclass(frozen=True)
class Labelled:
    """Pictures and the indices of their labels."""

    pictures: tuple[Picture, ...]
    targets: tuple[int, ...]

    @property
    def paths(self) -> list[str]:
        return [picture.path for picture in self.pictures]


@dataclass(frozen=True)
class Assignment:
    """Who is in which split. No group of near-duplicates is in two of train, val and test, nor in both `pretrain` and val or test."""

    train: Labelled
    val: Labelled
    test: Labelled
    pretrain: tuple[Picture, ...]


@dataclass(frozen=True)
class Corpus:
    root: Path
    assignment: Assignment
    kept: dict[str, Pixels]
    """Path → the picture at the recipe's `side`."""

    def pixels(self, pictures: Sequence[Picture]) -> list[Pixels]:
        return [self.kept[picture.path] for picture in pictures]


def build(data: Data, cache: Path) -> Corpus:
    """Obtain, decode, group and split. The first time takes a minute, later the decoded pictures come from `cache`. Raises DataError."""
    png = packages.obtain(data.pictures, cache) / "usr/share/openclipart/png"
    svg = packages.obtain(data.titles, cache) / "usr/share/openclipart/svg"
    collection = [p for p in openclipart.read_collection(png, svg) if not any(p.is_below(folder) for folder in data.unused)]
    paths = [picture.path for picture in collection]
    kept = dict(zip(paths, pictures.load_for_training(png, paths, data.side, cache), strict=True))
    group_of = groups.group(paths, list(kept.values()))
    return Corpus(png, assign(_without_copies(collection, png, data), group_of, data), kept)


def assign(collection: Sequence[Picture], group_of: dict[str, str], data: Data) -> Assignment:
    """Split by group. What no category covers, and the training split, is for pre-training, unless its group has a held-out picture."""
    shares = data.split.model_dump()
    members: dict[str, list[tuple[Picture, int]]] = {name: [] for name in shares}
    for picture in collection:
        label = openclipart.label_of(picture, data.categories)
        if label is not None:
            members[groups.split_of(group_of[picture.path], shares)].append((picture, label))
    held_out = {group_of[picture.path] for name in ("val", "test") for picture, _ in members[name]}
    labelled = {
        name: Labelled(tuple(picture for picture, _ in chosen), tuple(label for _, label in chosen)) for name, chosen in members.items()
    }
    return Assignment(**labelled, pretrain=tuple(p for p in collection if group_of[p.path] not in held_out))


def _without_copies(collection: Sequence[Picture], root: Path, data: Data) -> list[Picture]:
    """One of each set of identical files, which Open Clip Art files under several folders: the one whose category comes first."""

    def rank(picture: Picture) -> int:
        label = openclipart.label_of(picture, data.categories)
        return len(data.categories) if label is None else label

    chosen: dict[str, Picture] = {}
    for picture in collection:
        content = sha256_of(root / picture.path)
        if content not in chosen or rank(picture) < rank(chosen[content]):
            chosen[content] = picture
    return sorted(chosen.values(), key=lambda picture: picture.path)
