"""Actions of people in a video, or in tracks of people.

The worker gets `video` uint8 (bytes,), the file as it was sent, and `info` float64 (5,): width, height, frames a second, frames,
seconds; or the arrays of `server.media.person_tracks`, and what is known of `info`. It answers the arrays of
`models.systems.actions.job_arrays`, and for asynchronous jobs the video again, so that any gateway can draw the answer into it later.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.media.video import NAMES, ClipLimits
from models.systems.actions.detection_scale import Detail
from server.media import person_tracks, recordings
from server.media.images import ImageDecoder
from server.tasks import base
from server.tasks.base import JSON, Arrays, FileAnswer, Item, Outputs, RequestPart, Shapes, Tensor
from server.tasks.options import InvalidOption, RequestOptions

MP4 = "video/mp4"
MAX_FOLLOWED_PEOPLE = 50
DEFAULT_PEOPLE = 6
DEFAULT_TOP_K = 5
DEFAULT_DETAIL: Detail = "fast"
"""Default detail of bundles, and of plans that were stored without one."""
ROW_BYTES = 8 * (7 + 53)
"""Size of a sighting in a result: its box and its pose."""
SECOND_BYTES = 8 * 3
"""Size of a person's second, without its scores."""
SMALL_ARRAYS_BYTES = 512
NO_TIMES = np.zeros(0)
SAMPLE = Path(__file__).with_name("sample.mp4")
"""A drawn figure that detectors take for a person, to warm up with; made by `starters.make.drawings`."""
SAMPLE_FRAMES = 2


class ActionsOptions(RequestOptions, frozen=True, kw_only=True):
    top_k: Annotated[
        int | None, Meta(ge=1, description="Labels of a person and second, best first.", extra={"default": "5, or all of fewer"})
    ] = None
    threshold: Annotated[float, Meta(ge=0, le=1, description="Labels of a lower score are left out.")] = 0.0
    start_s: Annotated[
        float | None, Meta(ge=0, description="Frames from here on are looked at, in seconds from the first frame.", extra={"default": "0"})
    ] = None
    end_s: Annotated[
        float | None,
        Meta(gt=0, description="Frames before this are looked at; one at it is not.", extra={"default": "the end of the video"}),
    ] = None
    people: Annotated[
        int | None,
        Meta(
            ge=1,
            le=MAX_FOLLOWED_PEOPLE,
            description="Most people to follow at a time, those of the best boxes. Not with `tracks`.",
            extra={"values": f"1 to {MAX_FOLLOWED_PEOPLE}", "default": "the bundle's"},
        ),
    ] = None
    detail: Annotated[
        Detail | None,
        Meta(
            description="How closely people are looked for: `high` sees small ones and takes four times as long as `fast`. "
            "Not with `tracks`.",
            extra={"default": "the bundle's"},
        ),
    ] = None


class ActionsPlan(msgspec.Struct, frozen=True):
    top_k: int
    threshold: float
    start_s: float | None
    end_s: float | None
    people: int | None
    detail: Detail = DEFAULT_DETAIL
    asks_detail: bool = False
    """Whether `detail` was requested, rather than the bundle's."""


class VideoFacts(msgspec.Struct, frozen=True):
    """Size, rate and duration of a video; frames are upright, and `fps` is the mean."""

    width: int
    height: int
    fps: float
    frames: int
    duration_s: float


class ActionLabel(msgspec.Struct, frozen=True):
    label: str
    index: int
    score: float


class ActionSecond(msgspec.Struct, frozen=True):
    """Actions of a person in a second. `unsure` is present if the best score is below the reliable minimum on the bundle's card."""

    start_s: float
    end_s: float
    labels: list[ActionLabel]
    unsure: Literal[True] | UnsetType = UNSET


class Person(msgspec.Struct, frozen=True):
    """Boxes `[t, x, y, width, height, score]` and poses `[t, [[x, y, score], …]]` of a person, with COCO's 17 keypoints.

    They cover the frames in which the person was seen."""

    person: int
    first_s: float
    last_s: float
    boxes: list[list[float]]
    actions: list[ActionSecond]
    poses: list[tuple[float, list[list[float]]]] | UnsetType = UNSET


class ActionsAnswer(msgspec.Struct, frozen=True):
    """People by first appearance. If tracks were sent, `video` is null and there is no `detail`."""

    video: VideoFacts | None
    people: list[Person]
    detail: Detail | UnsetType = UNSET


class ActionsPreview(msgspec.Struct, frozen=True):
    """People that were seen in the latest window, and their actions as known so far."""

    people: list[Person]


class ActionsTask(
    base.Task[ActionsOptions, ActionsPlan],
    base.Plans[ActionsOptions, ActionsPlan],
    base.OffersFiles[ActionsOptions, ActionsPlan],
    base.ControlsBatching[ActionsPlan],
    base.TakesSteps[ActionsPlan],
    base.Previews[ActionsPlan],
    base.EchoesArrays,
    base.OffersTensors[ActionsPlan],
):
    """Recognise who does what, and when, in a video.

    People are found, followed and labelled, one set of labels for each second of a person; scores are sigmoids. With `Accept: video/mp4`
    the answer is the clip with boxes, skeletons and labels drawn into it. Instead of a video, tracks that were found before can be sent:
    the `people` of an answer as they are, or an .npz.
    """

    name = "actions"
    parts = (
        RequestPart("video", "video", f"{NAMES}, told apart by their bytes.", required=False),
        RequestPart("tracks", "file", "Tracks of people as JSON or .npz.", required=False),
    )
    options = ActionsOptions
    plan_type = ActionsPlan
    answer = ActionsAnswer
    example = ActionsAnswer(
        VideoFacts(width=1768, height=994, fps=30.0, frames=230, duration_s=7.667),
        [
            Person(
                person=1,
                first_s=0.0,
                last_s=2.83,
                boxes=[[0.0, 570.65, 54.28, 151.9, 422.51, 0.2705]],
                actions=[ActionSecond(0.0, 1.0, [ActionLabel("jump", 5, 0.61)])],
            )
        ],
        "high",
    )
    media_types = (JSON, MP4)
    echoed_arrays = ("video", "info")

    def plan(self, options: ActionsOptions, spec: BundleSpec) -> ActionsPlan:
        if options.top_k is not None and options.top_k > len(spec.labels):
            raise InvalidOption("top_k", f"{options.top_k}: use an integer from 1 to {len(spec.labels)}, the number of labels of {spec.id}")
        if options.end_s is not None and options.end_s <= (options.start_s or 0.0):
            raise InvalidOption("end_s", f"{options.end_s:g}: it must be after start_s, {options.start_s or 0.0:g}")
        top_k = min(DEFAULT_TOP_K, len(spec.labels)) if options.top_k is None else options.top_k
        detail = options.detail or spec.config.get("detail", DEFAULT_DETAIL)
        return ActionsPlan(top_k, options.threshold, options.start_s, options.end_s, options.people, detail, options.detail is not None)

    def prepare(self, item: Item, plan: ActionsPlan, spec: BundleSpec, decoder: ImageDecoder) -> list[Arrays]:
        if "video" in item and "tracks" in item:
            raise InvalidOption("tracks", "cannot be combined with a video: send one of them")
        if "tracks" in item:
            for name, value in (("detail", plan.detail if plan.asks_detail else None), ("people", plan.people)):
                if value is not None:
                    raise InvalidOption(name, f"{value}: tracks already have people's positions; leave it out")
            return [_arrays_from_tracks(item["tracks"], decoder.limits.clips.seconds)]
        facts = recordings.probe(item["video"], decoder.limits.clips)
        if plan.start_s is not None and plan.start_s >= facts.duration_s:
            raise InvalidOption("start_s", f"{plan.start_s:g}: the video has {facts.duration_s:g} seconds")
        info = np.array([facts.width, facts.height, facts.fps, facts.frames, facts.duration_s])
        return [{"video": np.frombuffer(item["video"], np.uint8), "info": info}]

    def bucket(self, plan: ActionsPlan, spec: BundleSpec, shapes: Shapes) -> str:
        """Return one bucket: videos of any kind share steps."""
        return "any"

    def arguments(self, plan: ActionsPlan, shapes: Shapes) -> dict[str, Any]:
        return {"start_s": plan.start_s, "end_s": plan.end_s, "people": plan.people, "detail": plan.detail}

    def present(self, outputs: Sequence[Outputs], plan: ActionsPlan, spec: BundleSpec, media_type: str) -> ActionsAnswer | FileAnswer:
        job_outputs = outputs[0]
        people = _people(job_outputs, plan, spec)
        if media_type != MP4:
            return ActionsAnswer(_video_facts(job_outputs), people, plan.detail if "video" in job_outputs else UNSET)
        if "video" not in job_outputs:
            raise InvalidOption("tracks", "there is no video to draw into: accept application/json")
        width, height = job_outputs["info"][:2].astype(int).tolist()
        max_pixels = ClipLimits.from_accepted(width, height).pixels
        clip = recordings.annotate(job_outputs["video"].tobytes(), [_annotation(person) for person in people], most_pixels=max_pixels)
        return FileAnswer(clip, {"X-People": str(len(people))})

    def preview(self, arrays: Outputs, plan: ActionsPlan, spec: BundleSpec) -> ActionsPreview:
        return ActionsPreview(_people(arrays, plan, spec))

    def tensors(self, spec: BundleSpec) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        inputs = tuple(Tensor(part.name, "BYTES", (1,)) for part in self.parts)
        return inputs, (Tensor("people", "BYTES", (1,)), Tensor("info", "FP64", (5,)))

    def to_tensors(self, outputs: Sequence[Outputs], plan: ActionsPlan, spec: BundleSpec) -> tuple[Arrays, dict[str, Any]]:
        """Return each video's people as JSON, and its width, height, frames a second, frames and seconds; zeros for tracks."""
        people = np.empty((len(outputs), 1), object)
        people[:, 0] = [msgspec.json.encode(_people(one, plan, spec)) for one in outputs]
        return {"people": people, "info": np.stack([one["info"] if "video" in one else np.zeros(5) for one in outputs])}, {}

    def result_bound(self, plan: ActionsPlan, spec: BundleSpec, arrays: Arrays) -> int:
        """Bound the file, and twice the data of all people: in the answer, and in a preview."""
        rate = spec.clip.rate if spec.clip is not None else 30.0
        labelled = SECOND_BYTES + 4 * len(spec.labels)
        requested_s = (plan.end_s or inf) - (plan.start_s or 0.0)
        duration = float(np.ptp(arrays["time"])) if arrays.get("time", NO_TIMES).size else float(arrays["info"][4])
        seconds = min(requested_s, int(1000 * duration) / 1000) + 2  # the partial ones at both ends
        if "person" in arrays:  # tracks: seconds in which no one was seen are labelled, too
            sightings = len(arrays["person"])
            answer_bytes = sightings * ROW_BYTES + seconds * labelled * min(person_tracks.MAX_TRACKED_PEOPLE, sightings)
        else:
            answer_bytes = seconds * (rate * ROW_BYTES + labelled) * (plan.people or int(spec.config.get("people", DEFAULT_PEOPLE)))
        video_bytes = arrays["video"].nbytes if "video" in arrays else 0
        return video_bytes + SMALL_ARRAYS_BYTES + int(2 * answer_bytes)

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        info = np.array([384.0, 256.0, 15.0, SAMPLE_FRAMES, SAMPLE_FRAMES / 15])
        return ({"video": np.frombuffer(SAMPLE.read_bytes(), np.uint8), "info": info},)


def _arrays_from_tracks(content: bytes, seconds: float) -> Arrays:
    found = person_tracks.read(content, seconds)
    width, height = found.pop("size").tolist()
    last = float(found["time"].max(initial=0.0))
    return {**found, "info": np.array([width, height, 0.0, 0.0, last])}


def _video_facts(job_outputs: Outputs) -> VideoFacts | None:
    if "video" not in job_outputs:
        return None
    width, height, fps, frames, duration = job_outputs["info"].tolist()
    return VideoFacts(int(width), int(height), round(fps, 3), int(frames), duration)


def _people(job_outputs: Outputs, plan: ActionsPlan, spec: BundleSpec) -> list[Person]:
    """Return all people with boxes or labels."""
    numbers = sorted({int(number) for name in ("boxes", "seconds") for number in job_outputs[name][:, 0]})
    return [_person(number, job_outputs, plan, spec) for number in numbers]


def _person(number: int, job_outputs: Outputs, plan: ActionsPlan, spec: BundleSpec) -> Person:
    boxes = _rows_of_person(job_outputs["boxes"], number)
    poses = _rows_of_person(job_outputs["poses"], number)
    is_person = job_outputs["seconds"][:, 0] == number
    seconds, scores = job_outputs["seconds"][is_person, 1:], job_outputs["scores"][is_person]
    times = boxes[:, 0] if len(boxes) else seconds.ravel()
    return Person(
        person=number,
        first_s=round(float(times.min()), 3),
        last_s=round(float(times.max()), 3),
        boxes=[[*_round(box[:1], 3), *_round(box[1:5], 2), *_round(box[5:], 4)] for box in boxes],
        actions=[
            ActionSecond(round(float(start), 3), round(float(end), 3), _labels(row, plan, spec), _unsure(row, spec))
            for (start, end), row in zip(seconds, scores, strict=True)
        ],
        poses=[_pose(pose) for pose in poses] if len(poses) else UNSET,
    )


def _pose(row: NDArray[Any]) -> tuple[float, list[list[float]]]:
    points = row[1:].reshape(-1, 3)
    return round(float(row[0]), 3), [[*_round(point[:2], 2), *_round(point[2:], 4)] for point in points]


def _rows_of_person(rows: NDArray[Any], number: int) -> NDArray[Any]:
    """Return the rows of one person, without the number."""
    person_rows: NDArray[Any] = rows[rows[:, 0] == number, 1:]
    return person_rows


def _round(values: NDArray[Any], digits: int) -> list[float]:
    rounded: list[float] = np.asarray(values, np.float64).round(digits).tolist()
    return rounded


def _labels(scores: NDArray[np.float32], plan: ActionsPlan, spec: BundleSpec) -> list[ActionLabel]:
    order = np.argsort(-scores, kind="stable")[: plan.top_k].tolist()
    best = [ActionLabel(spec.labels[i], i, round(float(scores[i]), 6)) for i in order]
    return [label for label in best if label.score >= plan.threshold]


def _unsure(scores: NDArray[np.float32], spec: BundleSpec) -> Literal[True] | UnsetType:
    thresholds = spec.config.get("thresholds") or ()
    best = int(scores.argmax())
    return True if thresholds and scores[best] < thresholds[best] else UNSET


def _lines(second: ActionSecond) -> list[str]:
    labels = [f"{label.label} {label.score:.2f}" for label in second.labels]
    return labels if second.unsure is UNSET else ["unsure", *labels]


def _annotation(person: Person) -> recordings.PersonAnnotation:
    return recordings.PersonAnnotation(
        person=person.person,
        boxes=[box[:5] for box in person.boxes],
        poses=[] if person.poses is UNSET else [[time, *(value for point in points for value in point)] for time, points in person.poses],
        texts=[(one.start_s, one.end_s, _lines(one)) for one in person.actions],
    )
