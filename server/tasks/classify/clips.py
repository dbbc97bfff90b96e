"""Video, sound, or both → labels, on the route of `classify`.

The worker gets `video` uint8 (bytes,), the file as it was sent, with `info` float64 (5,): width, height, frames a second, frames, seconds;
or `sound` float32 (n,), mono at the bundle's sample rate; or both. It answers `scores` float32 (classes,), averaged over views or windows,
and `tokens` int32 (2,) of one of them. For sound the gateway keeps `heard` float64 (3,): seconds of the part that is heard, its windows,
samples a second. Outputs of a timeline or trace are described in `server/tasks/classify/timeline.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.bundle_schema import Sound
from models.media import audio, video
from models.media.audio import SoundLimits
from models.registry import architectures
from server.media import recordings
from server.media.images import ImageDecoder
from server.media.limits import RecordingError, naming_part
from server.tasks import base
from server.tasks.base import Arrays, FileAnswer, Item, Outputs, RequestPart, Shapes, Tensor
from server.tasks.classify.images import (
    DEFAULT_TOP_K,
    Classification,
    ClassifyAnswer,
    ClassifyOptions,
    ClassifyTask,
    ClipFacts,
    Merging,
    SoundFacts,
    best_labels,
    check_trace,
    labelled_tensors,
    resolve_top_k,
    to_labelled_tensors,
)
from server.tasks.classify.timeline import ClassifyPreview, ViewSpans, timeline_bound, timeline_of
from server.tasks.options import InvalidOption, schedules_of

Use = Literal["both", "sound", "sight"]

VIDEO = RequestPart("video", "video", f"{video.NAMES}, detected by content.")
AUDIO = RequestPart("audio", "audio", f"{audio.NAMES}, detected by content; the default is the video's own sound.")


class ClassifyClipsPlan(msgspec.Struct, frozen=True):
    """Plan of clips. `rung` names the schedule, if one does; `schedule` is r of every block. `use` and `windows` are as requested."""

    top_k: int
    rung: str | None
    schedule: tuple[int, ...]
    views: int
    crops: int
    start_s: float | None
    end_s: float | None
    use: Use | None = None
    windows: int | None = None
    schedule_sight: tuple[int, ...] | None = None
    """r of every block of the half that sees. None if it is `schedule`."""
    asks_views: bool = False
    """Whether `views` was requested, rather than the bundle's."""
    asks_crops: bool = False
    """Whether `crops` was requested, rather than the bundle's."""
    asks_sight: bool = False
    """Whether `merge_sight` was requested, rather than the rung's."""
    timeline: bool = False
    trace: bool = False


class ClassifyClipsTask(
    base.Task[ClassifyOptions, ClassifyClipsPlan],
    base.Plans[ClassifyOptions, ClassifyClipsPlan],
    base.SelectsBundles,
    base.ControlsBatching[ClassifyClipsPlan],
    base.TakesSteps[ClassifyClipsPlan],
    base.Counts,
    base.Previews[ClassifyClipsPlan],
    base.EchoesArrays,
    base.OffersTensors[ClassifyClipsPlan],
):
    """Classify clips and sound."""

    name = "classify-clips"
    route = "classify"
    bundle_tasks = ("actions", "audio-visual")
    part_sets = (("video",), ("audio",), ("audio", "video"))
    parts = (VIDEO, AUDIO)
    options = ClassifyOptions
    plan_type = ClassifyClipsPlan
    answer = ClassifyAnswer
    example = ClassifyTask.example
    echoed_arrays = ("info", "heard")
    unread_arrays = ("heard",)
    options_without_tensor = ClassifyTask.options_without_tensor

    def accepted_parts(self, spec: BundleSpec) -> tuple[RequestPart, ...]:
        """Return the parts. A bundle that fuses both takes a video alone, with its own sound; one that separates them takes either."""
        if _fuses(spec):
            return VIDEO, replace(AUDIO, required=False)
        parts = tuple(part for part, is_taken in ((VIDEO, _sees(spec)), (AUDIO, _hears(spec))) if is_taken)
        return parts if len(parts) == 1 else tuple(replace(part, required=False) for part in parts)

    def mismatch(self, spec: BundleSpec, parts: Collection[str]) -> int:
        """Return 0 if it takes just these, 1 if it can do with either, 2 if it would take a sound, too."""
        just_these = {part.name for part in self.accepted_parts(spec)} == set(parts)
        if _fuses(spec):
            return 0 if just_these else 2
        return 0 if just_these and len(parts) == 1 else 1

    def plan(self, options: ClassifyOptions, spec: BundleSpec) -> ClassifyClipsPlan:
        check_trace(options, spec)
        if options.end_s is not None and options.end_s <= (options.start_s or 0.0):
            raise InvalidOption("end_s", f"{options.end_s:g}: it must be after start_s, {options.start_s or 0.0:g}")
        _check_bundle(options, spec)
        views = architectures()[spec.architecture].views(spec.config)
        merge, merge_sight = (None if value is None else str(value) for value in (options.merge, options.merge_sight))
        rung, schedule, schedule_sight = schedules_of(merge, merge_sight, spec)
        return ClassifyClipsPlan(
            top_k=resolve_top_k(options.top_k, spec),
            rung=rung,
            schedule=schedule,
            views=options.views or views.count,
            crops=options.crops or views.crops,
            start_s=options.start_s,
            end_s=options.end_s,
            use=options.use,
            windows=options.windows,
            schedule_sight=schedule_sight,
            asks_views=options.views is not None,
            asks_crops=options.crops is not None,
            asks_sight=merge_sight is not None,
            timeline=options.timeline or options.trace,
            trace=options.trace,
        )

    def prepare(self, item: Item, plan: ClassifyClipsPlan, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        use = _resolve_use(item, plan, spec)
        _check_use(plan, use)
        arrays: Arrays = {}
        if use != "sound":
            with naming_part("video"):
                facts = recordings.probe(item["video"], decoder.limits.clips)
            _check_start(plan, facts.duration_s, "video")
            info = np.array([facts.width, facts.height, facts.fps, facts.frames, facts.duration_s])
            arrays |= {"video": np.frombuffer(item["video"], np.uint8), "info": info}
        if use != "sight":
            assert spec.sound is not None
            samples = _read(item, spec.sound.sample_rate, decoder.limits.sounds)
            arrays |= {"sound": samples, "heard": _audible_range(samples, plan, spec.sound)}
        return [arrays]

    def bucket(self, plan: ClassifyClipsPlan, spec: BundleSpec, shapes: Shapes) -> str:
        """Return one bucket for views of any video and number, or windows of any sound, whose tokens merge alike."""
        merging = "/".join(",".join(map(str, half)) for half in (plan.schedule, plan.schedule_sight) if half is not None)
        return "+".join(name for name in ("sound", "video") if name in shapes) + ":" + merging + (":trace" if plan.trace else "")

    def arguments(self, plan: ClassifyClipsPlan, shapes: Shapes) -> dict[str, Any]:
        options = {name: getattr(plan, name) for name in ("views", "crops", "start_s", "end_s", "use", "windows")}
        sight = {} if plan.schedule_sight is None else {"merge_sight": list(plan.schedule_sight)}
        details = {name: True for name in ("timeline", "trace") if getattr(plan, name)}
        return {"merge": list(plan.schedule), **sight, **options, **details}

    def steps(self, plan: ClassifyClipsPlan, arrays: Arrays | None) -> int | None:
        if arrays is None:
            return None
        return int(arrays["heard"][1]) if "heard" in arrays else plan.views * plan.crops

    def progress_total(self, jobs: Sequence[Arrays]) -> tuple[int, str]:
        return len(jobs), "clips"

    def present(
        self, outputs: Sequence[Outputs], plan: ClassifyClipsPlan, spec: BundleSpec, media_type: str
    ) -> ClassifyAnswer | FileAnswer:
        return ClassifyAnswer([_classification(one, plan, spec) for one in outputs])

    def preview(self, arrays: Outputs, plan: ClassifyClipsPlan, spec: BundleSpec) -> ClassifyPreview:
        """Preview the views or windows so far, with few labels whatever was requested: the event loop makes it again for each of them."""
        count = min(plan.top_k, DEFAULT_TOP_K)
        best = best_labels(arrays["timeline"].mean(axis=0), count, spec)
        return ClassifyPreview(best, timeline_of(arrays, best, count, _spans(arrays, plan, spec), spec))

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return tuple(Tensor(part.name, "BYTES", (1,)) for part in self.accepted_parts(spec)), labelled_tensors(spec)

    def to_tensors(self, outputs: Sequence[Outputs], plan: ClassifyClipsPlan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        """Return scores and labels as for images."""
        tokens_in, tokens_out = outputs[0]["tokens"].tolist()
        parameters = {"tokens_in": tokens_in, "tokens_out": tokens_out} | ({} if plan.rung is None else {"rung": plan.rung})
        return to_labelled_tensors(np.stack([one["scores"] for one in outputs]), spec), parameters

    def result_bound(self, plan: ClassifyClipsPlan, spec: BundleSpec, arrays: Arrays) -> int:
        """Bound scores (classes,), tokens (2,), counts (4,), info (5,) and heard (3,); a timeline in the answer and in a preview."""
        return 4 * len(spec.labels) + 8 * 14 + (_timeline_bound(plan, spec) if plan.timeline else 0)

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        """Return `frames` uint8 (T, S, S, 3) of noise, since decoding is not the network's work; `sound` of one window; or both.

        A bundle that hears and sees separately has a job of either."""
        draw, arrays = np.random.default_rng(0), Arrays()
        if _hears(spec):
            assert spec.sound is not None
            arrays["sound"] = draw.normal(0, 0.1, spec.sound.frames * spec.sound.sample_rate // 100).astype(np.float32)
        if not _hears(spec) or _fuses(spec):
            arrays["frames"] = _noise_frames(spec, draw)
        if _hears(spec) and _sees(spec) and not _fuses(spec):
            return arrays, {"frames": _noise_frames(spec, np.random.default_rng(0))}
        return (arrays,)


def _noise_frames(spec: BundleSpec, draw: np.random.Generator) -> NDArray[np.uint8]:
    side, count = spec.image_preprocess.image_size, 1 if spec.clip is None else spec.clip.frames
    return draw.integers(0, 256, (count, side, side, 3), np.uint8)


def _sees(spec: BundleSpec) -> bool:
    return spec.clip is not None and spec.preprocess is not None


def _hears(spec: BundleSpec) -> bool:
    return spec.sound is not None


def _fuses(spec: BundleSpec) -> bool:
    """Return whether a bundle uses sound and sight together."""
    return _sees(spec) and _hears(spec) and architectures()[spec.architecture].fuses(spec.config)


def _check_bundle(options: ClassifyOptions, spec: BundleSpec) -> None:
    """Raise InvalidOption for options that the bundle does not support, whatever is sent."""
    if not _hears(spec):
        for name in ("merge_sight", "windows", "use"):
            if (value := getattr(options, name)) is not None:
                raise InvalidOption(name, f"{value}: {spec.id} hears no sound; leave it out")
        return
    for name in () if _sees(spec) else ("merge_sight", "views", "crops"):
        if (value := getattr(options, name)) is not None:
            raise InvalidOption(name, f"{value}: {spec.id} sees no video; leave it out")
    if options.crops is not None and options.crops > 1:
        raise InvalidOption("crops", f"{options.crops}: {spec.id} sees the whole of each frame; use 1, or leave it out")
    if _fuses(spec) and options.views is not None:
        raise InvalidOption("views", f"{options.views}: {spec.id} samples the video with each window of sound; use windows")
    uses = ("both",) if _fuses(spec) else tuple(use for use, can in (("sound", True), ("sight", _sees(spec))) if can)
    if options.use is not None and options.use not in uses:
        raise InvalidOption("use", f"{options.use}: {spec.id} was trained for {' or '.join(uses)}")


def _resolve_use(item: Item, plan: ClassifyClipsPlan, spec: BundleSpec) -> Use:
    """Return what the bundle uses. Raises InvalidOption if the parts leave it open, or do not suffice."""
    if _fuses(spec):
        return "both"
    if plan.use == "sight" and "video" not in item:
        raise InvalidOption("use", "sight: there is no video; send one")
    if plan.use == "sound" or plan.use == "sight":
        return plan.use
    if "audio" in item and "video" in item:
        raise InvalidOption("use", f"missing: {spec.id} classifies sound and sight separately; use sound or sight, or send one of them")
    return "sound" if "audio" in item else "sight"


def _check_use(plan: ClassifyClipsPlan, use: Use) -> None:
    """Raise InvalidOption for options without effect on what the bundle uses."""
    if use == "sound":
        given_options = {"views": plan.asks_views, "crops": plan.asks_crops, "merge_sight": plan.asks_sight}
        unused, hint = next((name for name, is_given in given_options.items() if is_given), None), "no video is seen; leave it out"
    elif use == "sight":
        given_options = {"windows": plan.windows is not None, "merge_sight": plan.asks_sight}
        unused = next((name for name, is_given in given_options.items() if is_given), None)
        hint = "no sound is heard; " + ("use merge" if unused == "merge_sight" else "leave it out")
    else:
        return
    if unused is not None:
        raise InvalidOption(unused, hint)


def _read(item: Item, rate: int, limits: SoundLimits) -> NDArray[np.float32]:
    """Return the sound that was sent, or the video's own, (n,). Raises MediaError that names the part, or the one that is missing."""
    if "audio" in item:
        with naming_part("audio"):
            return recordings.read_sound(item["audio"], rate, limits)
    try:
        with naming_part("video"):
            return recordings.read_sound(item["video"], rate, limits)
    except RecordingError as error:
        if error.problem != "no-sound":
            raise
        missing = RecordingError("no-sound", "missing: the video has no sound; send one as well")
        missing.part = "audio"
        raise missing from error


def _check_start(plan: ClassifyClipsPlan, seconds: float, medium: str) -> None:
    if plan.start_s is not None and plan.start_s >= seconds:
        raise InvalidOption("start_s", f"{plan.start_s:g}: the {medium} has {seconds:g} seconds; begin before its end")


def _audible_range(samples: NDArray[np.float32], plan: ClassifyClipsPlan, spec: Sound) -> NDArray[np.float64]:
    """Return the seconds that are heard, the windows that they fill, and samples a second. Raises InvalidOption for too short a part."""
    rate = spec.sample_rate
    _check_start(plan, len(samples) / rate, "sound")
    start = round((plan.start_s or 0.0) * rate)
    end = len(samples) if plan.end_s is None else round(min(len(samples), plan.end_s * rate))
    if end - start < round(audio.ANALYSIS_WINDOW_S * rate):
        field = "start_s" if plan.end_s is None or end == len(samples) else "end_s"
        left, hint = 1000 * (end - start) / rate, "begin earlier" if field == "start_s" else "end later"
        min_ms = 1000 * audio.ANALYSIS_WINDOW_S
        raise InvalidOption(field, f"{getattr(plan, field):g}: {left:.3g} ms are left, and one analysis window has {min_ms:g} ms; {hint}")
    fitting = audio.count_windows(end - start, spec)
    windows = min(fitting, plan.windows or fitting)
    return np.array([min(end - start, windows * audio.window_samples(spec)) / rate, windows, rate])


def _classification(outputs: Outputs, plan: ClassifyClipsPlan, spec: BundleSpec) -> Classification:
    """Present the best labels of one clip or sound."""
    tokens_in, tokens_out = outputs["tokens"].tolist()
    sight = plan.schedule_sight if "info" in outputs else None
    best = best_labels(outputs["scores"], plan.top_k, spec)
    return Classification(
        best,
        Merging(plan.rung, plan.schedule, tokens_in, tokens_out, schedule_sight=UNSET if sight is None else sight),
        _clip_facts(outputs, plan, spec),
        _sound_facts(outputs, plan),
        timeline_of(outputs, best, plan.top_k, _spans(outputs, plan, spec), spec) if "timeline" in outputs else UNSET,
    )


def _spans(outputs: Outputs, plan: ClassifyClipsPlan, spec: BundleSpec) -> ViewSpans:
    """Return the spans of views. A preview does not have the length of the sound yet."""
    start_s = plan.start_s or 0.0
    end_s = start_s + float(outputs["heard"][0]) if "heard" in outputs else math.inf
    return ViewSpans(_fuses(spec) or "frames_at" not in outputs, start_s, end_s)


def _timeline_bound(plan: ClassifyClipsPlan, spec: BundleSpec) -> int:
    views = max(plan.views if _sees(spec) else 0, audio.MAX_WINDOWS if _hears(spec) else 0)
    return timeline_bound(plan.schedule, views, plan.trace, spec)


def _clip_facts(outputs: Outputs, plan: ClassifyClipsPlan, spec: BundleSpec) -> ClipFacts | UnsetType:
    if spec.clip is None or "info" not in outputs:
        return UNSET
    views = int(outputs["heard"][1]) if "heard" in outputs else plan.views
    duration = float(outputs["info"][4])
    seconds = min(duration, plan.end_s or duration) - (plan.start_s or 0.0)
    return ClipFacts(spec.clip.frames, views, plan.crops, round(seconds, 3))


def _sound_facts(outputs: Outputs, plan: ClassifyClipsPlan) -> SoundFacts | UnsetType:
    if "heard" not in outputs:
        return UNSET
    seconds, windows, rate = outputs["heard"].tolist()
    return SoundFacts(round(seconds, 3), int(windows), int(rate))
