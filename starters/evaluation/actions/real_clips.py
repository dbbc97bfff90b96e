"""Predictions of an action recognition network on real clips, with detection and tracking as in the service."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from models import bundle
from models.loading import load
from models.people.keypoint_tracks import to_lart_tracks
from models.systems.lart.model import LART
from models.systems.lart.windows import predict_track
from models.systems.onnx.pose_detector import PoseGraph
from models.systems.phalp.keypoint_tracker import track_poses
from starters.data.people.motions import MotionTracks
from starters.evaluation.actions.settings import RealClip, SeenAction
from training.data.packages import obtain
from training.errors import DataError

TOP_CLASSES = 3


def describe_clip(clip: RealClip, network: LART, source: MotionTracks, cache: Path) -> dict[str, Any]:
    """Return the best classes of each person and second, with the annotated actions. Raises DataError."""
    try:
        model = load(bundle.read(clip.detector)).model
    except bundle.BundleError as error:
        raise DataError(f"clips: {error}") from error
    if not isinstance(model, PoseGraph):
        raise DataError(f"clips: {clip.detector} is not a pose detector")
    rate = source.settings.rate
    images = list(frames(obtain(clip.package, cache) / clip.file, rate))
    found = [model.find(torch.from_numpy(image)[None])[0] for image in images]
    height, width, _ = images[0].shape
    people = []
    for track in track_poses(found, width, height, rate):
        scores = read(network, to_lart_tracks(track, width, height))
        seen = [part for part in clip.seen if part.person == track.person]
        people.append({"person": track.person, "seconds": list(_seconds(track.first_frame, scores, rate, source.labels, seen))})
    return {"clip": f"{clip.package.name} {clip.package.version}: {Path(clip.file).name}", "people": people}


@torch.inference_mode()
def read(network: LART, track: Any) -> NDArray[np.float32]:
    """Return sigmoids (L, classes) of one track; each window predicts its middle quarter."""
    step = network.config.frames // 4
    margin = (network.config.frames - step - 1) // 2
    logits = predict_track(network, track, step=step, margin=margin).actions[0, :, 0]
    return np.asarray(logits.sigmoid().numpy())


def frames(path: Path, rate: float) -> Iterator[NDArray[np.uint8]]:
    """Yield RGB frames (H, W, 3), `rate` per second: the nearest one to each moment."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or rate)
        numbers = itertools.count()
        moment = next(numbers) / rate
        for number, frame in enumerate(container.decode(stream)):
            if number / fps >= moment - 0.5 / fps:
                moment = next(numbers) / rate
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _seconds(
    first: int, scores: NDArray[np.float32], rate: float, labels: tuple[str, ...], seen: list[SeenAction]
) -> Iterator[dict[str, Any]]:
    """Yield the best classes around the middle of each second of a track."""
    last = (first + len(scores) - 1) / rate
    for second in range(int(first / rate), int(last) + 1):
        middle = round((second + 0.5) * rate) - first
        around = scores[max(0, middle - round(0.2 * rate)) : max(0, middle + round(0.2 * rate))]
        if not len(around):
            continue
        mean = around.mean(axis=0)
        best = np.argsort(-mean)[:TOP_CLASSES]
        saw = [part.what for part in seen if part.begin <= second + 0.5 < part.end]
        yield {
            "second": second,
            "seen": saw[0] if saw else "",
            "told": [{"label": labels[label], "score": round(float(mean[label]), 3)} for label in best],
        }
