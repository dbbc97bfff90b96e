"""PHALP's results of a video (arXiv 2112.04477) in the published layout: a dict per frame, with parallel lists of its tracks.

`joblib.dump(results, path, compress=3)` writes the published file, which `models.people.tracklets.read_results` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.systems.phalp.tracker import Observation, Track, TrackState

RECORD_FIELDS = (
    "center", "scale", "size", "img_path", "img_name", "class_name", "conf", "annotations", "smpl", "camera", "camera_bbox", "3d_joints",
    "2d_joints", "mask", "extra_data",
)  # fmt: skip
"""Fields of each observation's `record` besides `bbox`; missing ones are None."""

Frame = dict[str, Any]


class PhalpResults:
    """Results of a video, built frame by frame after the tracker has processed each."""

    def __init__(self, confirmed_after: int) -> None:
        """Create empty results. confirmed_after: as in the tracker's config."""
        self.frames: dict[Any, Frame] = {}
        """Name of a frame → its results, in order."""
        self._confirmed_after = confirmed_after

    def add(self, name: Any, time: int, tracks: Sequence[Track], *, shot: bool = False) -> None:
        """Add a frame. Confirmed tracks that were missed in it repeat their last detection, with its age in `tracked_time`.

        A track that has just been confirmed is also added to the frames in which it was tentative.
        """
        frame: Frame = {"time": time, "shot": int(shot), "frame_path": name, "tracked_ids": [], "tracked_bbox": []}
        frame |= {field: [] for field in ("tid", "bbox", "tracked_time", *RECORD_FIELDS)}
        self.frames[name] = frame
        for track in tracks:
            if track.state is not TrackState.CONFIRMED:
                continue
            _append_track(frame, track.number, track.last, track.missed)
            if track.hits == self._confirmed_after and track.missed == 0:
                self._backfill(track)

    def _backfill(self, track: Track) -> None:
        """Add a track's earlier observations to the frames of their times."""
        reports = {report["time"]: report for report in self.frames.values()}
        for observation in list(track.history)[-self._confirmed_after : -1]:
            report = reports.get(observation.time)
            if report is not None and track.number not in report["tid"]:
                _append_track(report, track.number, observation, age=0)


def _append_track(frame: Frame, number: int, observation: Observation, age: int) -> None:
    box = np.asarray(observation.record["bbox"])
    frame["tid"].append(number)
    frame["bbox"].append(box)
    frame["tracked_time"].append(age)
    for field in RECORD_FIELDS:
        frame[field].append(observation.record.get(field))
    if age == 0:
        frame["tracked_ids"].append(number)
        frame["tracked_bbox"].append(box)
