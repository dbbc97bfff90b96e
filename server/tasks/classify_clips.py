"""Video → labels, on the route of `classify`. The worker gets `video` uint8 (bytes,), the file as it was sent, and `info` float64 (5,):
width, height, frames a second, frames, seconds. It answers `scores` float32 (classes,), averaged, and `tokens` int32 (2,) of a view."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from models.bundle import BundleSpec
from models.registry import architectures
from server.media import video
from server.media.images import Decoder
from server.media.limits import named
from server.tasks.base import Arrays, File, Item, Outputs, Part, Task, Tensor
from server.tasks.classify import (
    Classification,
    Classify,
    ClassifyAnswer,
    ClassifyOptions,
    ClipFacts,
    Merging,
    best_labels,
    checked_top_k,
    labelled,
    labelled_tensors,
)
from server.tasks.merging import schedule_of
from server.tasks.options import InvalidOption

VIDEO = Part("video", "video", f"{video.NAMES}, told apart by their bytes.")


class ClassifyClipsPlan(msgspec.Struct, frozen=True):
    """`rung` is the one that names the schedule, if one does; `schedule` is r of every block."""

    top_k: int
    rung: str | None
    schedule: tuple[int, ...]
    views: int
    crops: int
    start_s: float | None
    end_s: float | None


class ClassifyClips(Task[ClassifyOptions, ClassifyClipsPlan]):
    name = "classify-clips"
    route = "classify"
    bundle_tasks = ("actions",)
    part_sets = (("video",),)
    summary = Classify.summary
    parts = (VIDEO,)
    options = ClassifyOptions
    plan_type = ClassifyClipsPlan
    answer = ClassifyAnswer
    example = Classify.example
    echoed_arrays = ("info",)
    takes_long = True

    def takes(self, spec: BundleSpec) -> tuple[Part, ...]:
        return (VIDEO,)

    def suits(self, spec: BundleSpec, parts: Collection[str]) -> bool:
        return {part.name for part in self.takes(spec)} == set(parts)

    def plan(self, asked: ClassifyOptions, spec: BundleSpec) -> ClassifyClipsPlan:
        if asked.trace:
            raise InvalidOption("trace", f"true: {spec.id} classifies clips, and only images are traced; leave it out")
        for name in ("windows", "use"):
            if (value := getattr(asked, name)) is not None:
                raise InvalidOption(name, f"{value}: {spec.id} hears no sound; leave it out")
        if asked.end_s is not None and asked.end_s <= (asked.start_s or 0.0):
            raise InvalidOption("end_s", f"{asked.end_s:g}: it must be after start_s, {asked.start_s or 0.0:g}")
        views = architectures()[spec.architecture].views(spec.config)
        rung, schedule = schedule_of(None if asked.merge is None else str(asked.merge), spec)
        return ClassifyClipsPlan(
            top_k=checked_top_k(asked.top_k, spec),
            rung=rung,
            schedule=schedule,
            views=asked.views or views.count,
            crops=asked.crops or views.crops,
            start_s=asked.start_s,
            end_s=asked.end_s,
        )

    def prepare(self, item: Item, plan: ClassifyClipsPlan, spec: BundleSpec, decoder: Decoder) -> list[Arrays]:
        with named("video"):
            facts = video.probe(item["video"], decoder.limits.clips)
        if plan.start_s is not None and plan.start_s >= facts.duration_s:
            raise InvalidOption("start_s", f"{plan.start_s:g}: the video has {facts.duration_s:g} seconds")
        info = np.array([facts.width, facts.height, facts.fps, facts.frames, facts.duration_s])
        return [{"video": np.frombuffer(item["video"], np.uint8), "info": info}]

    def bucket(self, plan: ClassifyClipsPlan, spec: BundleSpec) -> str:
        """Views of any video and number go together, if their tokens merge alike."""
        return ",".join(map(str, plan.schedule))

    def arguments(self, plan: ClassifyClipsPlan) -> dict[str, Any]:
        asked = {name: getattr(plan, name) for name in ("views", "crops", "start_s", "end_s")}
        return {"merge": list(plan.schedule), **asked}

    def steps(self, plan: ClassifyClipsPlan, arrays: Arrays | None = None) -> int:
        return plan.views * plan.crops

    def counted(self, jobs: Sequence[Arrays]) -> tuple[int, str]:
        return len(jobs), "clips"

    def present(self, outputs: Sequence[Outputs], plan: ClassifyClipsPlan, spec: BundleSpec, media_type: str) -> ClassifyAnswer | File:
        return ClassifyAnswer([_classification(one, plan, spec) for one in outputs])

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return tuple(Tensor(part.name, "BYTES", (1,)) for part in self.takes(spec)), labelled_tensors(spec)

    def to_tensors(self, outputs: Sequence[Outputs], plan: ClassifyClipsPlan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        """Scores and labels as of images."""
        tokens_in, tokens_out = outputs[0]["tokens"].tolist()
        told = {"tokens_in": tokens_in, "tokens_out": tokens_out} | ({} if plan.rung is None else {"rung": plan.rung})
        return labelled(np.stack([one["scores"] for one in outputs]), spec), told

    def result_bound(self, plan: ClassifyClipsPlan, spec: BundleSpec, sizes: Mapping[str, int]) -> int:
        """Scores (classes,), tokens (2,) and info (5,)."""
        return 4 * len(spec.labels) + 8 * 7

    def sample(self, spec: BundleSpec) -> Arrays:
        """`frames` uint8 (T, S, S, 3) of noise: a video would have to be decoded first, which is no work of the network."""
        side, count = spec.pictures.image_size, 1 if spec.clip is None else spec.clip.frames
        return {"frames": np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)}


def _classification(outputs: Outputs, plan: ClassifyClipsPlan, spec: BundleSpec) -> Classification:
    """The best labels of one clip."""
    tokens_in, tokens_out = outputs["tokens"].tolist()
    return Classification(
        best_labels(outputs["scores"], plan.top_k, spec),
        Merging(plan.rung, plan.schedule, tokens_in, tokens_out),
        _clip_facts(outputs, plan, spec),
    )


def _clip_facts(outputs: Outputs, plan: ClassifyClipsPlan, spec: BundleSpec) -> ClipFacts | UnsetType:
    if spec.clip is None or "info" not in outputs:
        return UNSET
    duration = float(outputs["info"][4])
    seconds = min(duration, plan.end_s or duration) - (plan.start_s or 0.0)
    return ClipFacts(spec.clip.frames, plan.views, plan.crops, round(seconds, 3))
