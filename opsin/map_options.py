"""Options of `Client.map`, by task: those of the task's method that may hold for all inputs, beside how inputs are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from opsin.actions import ActionsOptions
from opsin.classification import ClassifyOptions
from opsin.embedding import EmbedOptions, Output
from opsin.inpainting import InpaintOptions
from opsin.pictures import Picture
from opsin.reconstruction import Map, ReconstructOptions
from opsin.zero_shot import ZeroShotOptions

Task = Literal["classify", "zero-shot", "embed", "inpaint", "reconstruct", "actions"]
ProgressOption = bool | Callable[[int, int], None] | None


class MapOptions(TypedDict, total=False):
    concurrency: int
    """Number of inputs that are asked at a time; 8 by default."""
    pattern: str
    """Which files of a folder are taken; all by default."""
    progress: ProgressOption


class ClassifyMap(ClassifyOptions, MapOptions, total=False): ...


class ZeroShotMap(ZeroShotOptions, MapOptions, total=False):
    labels: Sequence[str]


class EmbedMap(EmbedOptions, MapOptions, total=False):
    output: Output


class InpaintMap(InpaintOptions, MapOptions, total=False):
    mask: Picture | None


class ReconstructMap(ReconstructOptions, MapOptions, total=False):
    depth: Map | None
    points: Map | None
    mask: Picture | None


class ActionsMap(ActionsOptions, MapOptions, total=False): ...


TABLES: Mapping[Task, type[Any]] = {
    "classify": ClassifyMap,
    "zero-shot": ZeroShotMap,
    "embed": EmbedMap,
    "inpaint": InpaintMap,
    "reconstruct": ReconstructMap,
    "actions": ActionsMap,
}
