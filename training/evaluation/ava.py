"""AVA's metric (arXiv 1705.08421): from tracks' logits, or the service's responses, to scored boxes at key frames, and their frame mAP.

`python -m training.evaluation.ava RESULTS TRUTH.csv` measures a folder of responses of `POST /v1/actions`, `VIDEO.json` each.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Float64Array
from models.people.ava import CLASS_NAMES, EVALUATED_CLASSES

FRAMES_PER_SECOND = 30
FIRST_SECOND = 900
"""First second of the part of each video that AVA annotates."""
SCORED_SECONDS = range(902, 1799)
LOWEST_CONFIDENCE = 0.80
"""Lowest score of a person's detection at the key frame."""
OVERLAP = 0.5
NEAREST_BOX_S = 0.25
"""Seconds between a key frame and the box that an answer has for it, at most."""
PER_FRAME = 50
"""Scored boxes that count in each frame, over all people and classes."""


@dataclass(frozen=True)
class ScoredTrack:
    """A track and what a model said of it; arrays have a row for each frame, padding included."""

    name: str
    """`<data set>_<video>_<key frame>_<track>_<length>`; the video's name may hold underscores, too."""
    frame_names: tuple[str, ...]
    """"-1" for padding."""
    logits: NDArray[np.floating]
    """(T, 60)."""
    detected: NDArray[np.bool_]
    boxes: NDArray[np.floating]
    """(T, 4), x, y, width, height in pixels."""
    confidences: NDArray[np.floating]
    sizes: NDArray[np.floating]
    """(T, 2), heights and widths."""

    @property
    def video(self) -> str:
        return self.name.rsplit("_", 3)[0].split("_", 1)[1]

    @property
    def key_frame(self) -> str:
        return self.name.rsplit("_", 3)[1]

    @property
    def second(self) -> int:
        return int(self.key_frame) // FRAMES_PER_SECOND + FIRST_SECOND


@dataclass(frozen=True)
class Boxes:
    """Boxes of people at key frames, one row for each class of each."""

    videos: tuple[str, ...]
    seconds: NDArray[np.int64]
    corners: Float64Array
    """(R, 4), x1, y1, x2, y2 in parts of the picture."""
    classes: NDArray[np.int64]
    """AVA's numbers."""
    scores: Float64Array
    """1 for ground truth."""

    def to_sorted_table(self) -> tuple[list[str], Float64Array]:
        """Return videos and rows (R, 7) of second, corners, class and score, sorted by video, second, class and score."""
        order = np.lexsort([self.scores, self.classes, self.seconds, np.array(self.videos)])
        table = np.column_stack([self.seconds, self.corners, self.classes, self.scores])
        return [self.videos[row] for row in order], table[order]


def score_rows(tracks: Iterable[ScoredTrack], pooling: str = "track.fullframe@avg.6") -> Boxes:
    """Scored boxes of all 60 classes for each track that was detected at its key frame.

    pooling: `…@` for the score at the key frame, `…@avg.N` for the mean of the scores from N frames before it to N - 1 after.
    """
    key_rows = [(track, row) for track in tracks if (row := _key_row(track)) is not None]
    scores = [_pool(track, row, _reach(pooling)) for track, row in key_rows]
    corners = [_corners(track, row) for track, row in key_rows]
    count = len(EVALUATED_CLASSES)
    return Boxes(
        videos=tuple(track.video for track, _ in key_rows for _ in EVALUATED_CLASSES),
        seconds=np.repeat(np.array([track.second for track, _ in key_rows], np.int64), count),
        corners=np.repeat(np.array(corners, np.float64).reshape(-1, 4), count, axis=0),
        classes=np.tile(np.array(EVALUATED_CLASSES, np.int64), len(key_rows)),
        scores=np.concatenate([np.zeros(0), *scores]),
    )


def _key_row(track: ScoredTrack) -> int | None:
    """Return the row of the key frame; None for tracks that are not scored."""
    rows = [row for row, name in enumerate(track.frame_names) if track.key_frame in name]
    if not rows or track.second not in SCORED_SECONDS:
        return None
    row = rows[-1]
    return row if track.detected[row] and track.confidences[row] >= LOWEST_CONFIDENCE else None


def _reach(pooling: str) -> int:
    """Frames on each side; 0 for the key frame alone."""
    match = re.fullmatch(r"[^@]*@(?:avg\.(\d+))?", pooling)
    if match is None:
        raise ValueError(f"pooling {pooling!r} is neither `…@` nor `…@avg.N`")
    return int(match[1] or 0)


def _pool(track: ScoredTrack, row: int, reach: int) -> Float64Array:
    """Return scores (60,), the mean over frames."""
    length = sum(name != "-1" for name in track.frame_names)
    rows = slice(max(0, row - reach), min(length, row + reach)) if reach else slice(row, row + 1)
    mean: Float64Array = (1 / (1 + np.exp(-track.logits[rows].astype(np.float64)))).mean(axis=0)
    return mean


def _corners(track: ScoredTrack, row: int) -> Float64Array:
    x, y, width, height = track.boxes[row].astype(np.float64)
    rows, columns = track.sizes[row]
    return np.array([x / columns, y / rows, (x + width) / columns, (y + height) / rows])


def read_boxes(path: Path) -> Boxes:
    """Read a CSV file of AVA: video, second, four corners, class, and for predictions the score. Raises ValueError."""
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if any(len(row) not in (7, 8) for row in rows):
        raise ValueError(f"{path}: rows of AVA have 7 values, or 8 with a score")
    return Boxes(
        videos=tuple(row[0] for row in rows),
        seconds=np.array([int(row[1]) for row in rows], np.int64),
        corners=np.array([row[2:6] for row in rows], np.float64).reshape(-1, 4),
        classes=np.array([int(row[6]) for row in rows], np.int64),
        scores=np.array([float(row[7]) if len(row) == 8 else 1.0 for row in rows]),
    )


def read_answers(folder: Path, *, first_second: int = FIRST_SECOND, least_confidence: float = 0.0) -> Boxes:
    """Answers of `POST /v1/actions`, one file `VIDEO.json` each. Ask for all classes (`top_k`): what is not among its labels has no score.

    first_second: AVA's number of the second at which the videos begin. Raises ValueError that names the file and the field.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"{folder}: contains no VIDEO.json")
    numbers = {name: number for number, name in CLASS_NAMES.items()}
    rows: list[tuple[str, int, list[float], int, float]] = []
    for file in files:
        try:
            answer = json.loads(file.read_text(encoding="utf-8"))
            for second, corners, labels in _read_people(answer, least_confidence):
                for label in labels:
                    number, score = numbers.get(label["label"]), float(label["score"])
                    if number is None:
                        raise ValueError(f"people.actions.labels: {label['label']} is not a class of AVA")
                    rows.append((file.stem, first_second + second, corners, number, score))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{file}: not a response of /v1/actions ({type(error).__name__}: {error})") from error
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return Boxes(
        videos=tuple(row[0] for row in rows),
        seconds=np.array([row[1] for row in rows], np.int64),
        corners=np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
        classes=np.array([row[3] for row in rows], np.int64),
        scores=np.array([row[4] for row in rows], np.float64),
    )


def _read_people(answer: Any, least_confidence: float) -> Iterable[tuple[int, list[float], Any]]:
    """Second, corners in shares of the frame and labels, for each person and whole second that a stretch of actions covers."""
    width, height = float(answer["video"]["width"]), float(answer["video"]["height"])
    for person in answer["people"]:
        for action in person["actions"]:
            second = math.ceil(action["start_s"] - 1e-6)
            near = min(person["boxes"], key=lambda box: abs(box[0] - second), default=None)
            if second >= action["end_s"] or near is None or abs(near[0] - second) > NEAREST_BOX_S or near[5] < least_confidence:
                continue
            _, x, y, wide, high, _ = map(float, near)
            yield second, [x / width, y / height, (x + wide) / width, (y + high) / height], action["labels"]


@dataclass(frozen=True)
class FrameMAP:
    average_precision: Float64Array
    """(classes,); NaN for a class that is not in the ground truth."""
    mean: float
    """Over the classes that are."""


def evaluate(predictions: Boxes, truth: Boxes, classes: Sequence[int] = EVALUATED_CLASSES) -> FrameMAP:
    """Frame mAP at an overlap of one half. Predictions in frames that the ground truth does not have are left out; equal scores keep the
    order of the predictions, in the bound of each frame as in the ranking of a class."""
    frames = {key: number for number, key in enumerate(dict.fromkeys(zip(truth.videos, truth.seconds.tolist(), strict=True)))}
    true_frames = np.array([frames[key] for key in zip(truth.videos, truth.seconds.tolist(), strict=True)], np.int64)
    frame = np.array([frames.get(key, -1) for key in zip(predictions.videos, predictions.seconds.tolist(), strict=True)], np.int64)
    ranked = np.sort(_best_of_each_frame(frame, predictions.scores))
    ranked = ranked[np.argsort(-predictions.scores[ranked], kind="stable")]
    hits = _hits(
        _FrameBoxes.from_frames(frame[ranked], predictions.classes[ranked], predictions.corners[ranked]),
        _FrameBoxes.from_frames(true_frames, truth.classes, truth.corners),
    )
    values = np.full(len(classes), np.nan)
    for place, number in enumerate(classes):
        count = int((truth.classes == number).sum())
        if count:
            values[place] = average_precision(hits[predictions.classes[ranked] == number], count)
    return FrameMAP(values, float(np.nanmean(values)) if not np.isnan(values).all() else float("nan"))


def average_precision(hits: NDArray[np.bool_], count: int) -> float:
    """Return the area under precision over recall, of `count` true boxes. `hits` are sorted by falling score."""
    right = np.cumsum(hits)
    recall = np.concatenate([[0.0], right / count])
    precision = right / np.arange(1, len(hits) + 1)
    highest_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * highest_from_here).sum())


def _best_of_each_frame(frame: NDArray[np.int64], scores: Float64Array) -> NDArray[np.int64]:
    """Rows of the PER_FRAME highest scores in each frame; none of frame -1."""
    order = np.lexsort([-scores, frame])
    ordered = frame[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within its frame
    return order[(rank < PER_FRAME) & (ordered >= 0)]


@dataclass(frozen=True)
class _FrameBoxes:
    """Boxes, and one number for the frame and class of each."""

    key: NDArray[np.int64]
    corners: Float64Array

    @classmethod
    def from_frames(cls, frame: NDArray[np.int64], classes: NDArray[np.int64], corners: Float64Array) -> _FrameBoxes:
        return cls(frame * 1000 + classes, corners)


def _hits(predictions: _FrameBoxes, truth: _FrameBoxes) -> NDArray[np.bool_]:
    """Which predictions, by falling score, overlap enough with their best true box and are the first to have it."""
    order = np.argsort(truth.key, kind="stable")
    first = np.searchsorted(truth.key[order], predictions.key, "left")
    count = np.searchsorted(truth.key[order], predictions.key, "right") - first
    prediction = np.repeat(np.arange(len(count)), count)  # every pair of a prediction and a true box of its frame and class
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    candidate = order[np.repeat(first, count) + offset]
    overlap = _overlap(predictions.corners[prediction], truth.corners[candidate])
    best = np.lexsort([offset, -overlap, prediction])
    best = best[np.unique(prediction[best], return_index=True)[1]]  # the best pair of each prediction that has any
    best = best[overlap[best] >= OVERLAP]
    hits = np.zeros(len(count), np.bool_)
    hits[prediction[best][np.unique(candidate[best], return_index=True)[1]]] = True
    return hits


def _overlap(a: Float64Array, b: Float64Array) -> Float64Array:
    """Intersection over union of boxes (N, 4) in pairs."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    ratio: Float64Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation.ava", description="Frame mAP of responses of /v1/actions, by AVA's rules."
    )
    parser.add_argument("results", type=Path, help="folder of responses, one VIDEO.json for each video")
    parser.add_argument("truth", type=Path, help="AVA's CSV file: video, second, four corners, class")
    parser.add_argument(
        "--first-second", type=int, default=FIRST_SECOND, help="AVA's number of the videos' first second (default: %(default)s)"
    )
    parser.add_argument("--least-confidence", type=float, default=0.0, help="leave out boxes below it (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        predictions = read_answers(options.results, first_second=options.first_second, least_confidence=options.least_confidence)
        measured = evaluate(predictions, read_boxes(options.truth))
    except (OSError, ValueError) as error:
        print(f"ava: {error}", file=sys.stderr)
        return 2
    for number, precision in zip(EVALUATED_CLASSES, measured.average_precision.tolist(), strict=True):
        if not math.isnan(precision):
            print(f"{CLASS_NAMES[number]:20} {100 * precision:5.1f}")
    print(f"{'frame mAP':20} {100 * measured.mean:5.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
