"""PHALP's report of a video (arXiv 2112.04477) in the published layout: one dict a frame, with parallel lists of its tracks.

`joblib.dump(results, path, compress=3)` writes the published file, which `models.people.tracklets.read_results` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.systems.phalp.tracker import Observation, State, Track

RECORDED = (
    "center", "scale", "size", "img_path", "img_name", "class_name", "conf", "annotations", "smpl", "camera", "camera_bbox", "3d_joints",
    "2d_joints", "mask", "extra_data",
)  # fmt: skip
"""Fields of each observation's `record` besides `bbox`; missing ones are None."""

Frame = dict[str, Any]


class Results:
    """Built frame by frame, after the tracker has seen each."""

    def __init__(self, confirmed_after: int) -> None:
        """confirmed_after: the tracker's."""
        self.frames: dict[Any, Frame] = {}
        """Frame's name → its report, in order."""
        self._confirmed_after = confirmed_after

    def add(self, name: Any, time: int, tracks: Sequence[Track], *, shot: bool = False) -> None:
        """Report a frame. Confirmed tracks that were missed in it repeat what was last seen of them, with their age in `tracked_time`.

        A track that has just been confirmed is also entered into the frames in which it was tentative.
        """
        frame: Frame = {"time": time, "shot": int(shot), "frame_path": name, "tracked_ids": [], "tracked_bbox": []}
        frame |= {field: [] for field in ("tid", "bbox", "tracked_time", *RECORDED)}
        self.frames[name] = frame
        for track in tracks:
            if track.state is not State.CONFIRMED:
                continue
            _enter(frame, track.number, track.last, track.missed)
            if track.hits == self._confirmed_after and track.missed == 0:
                self._fill_in(track)

    def _fill_in(self, track: Track) -> None:
        """Its earlier observations, each in the frame of its time."""
        reports = {report["time"]: report for report in self.frames.values()}
        for seen in list(track.history)[-self._confirmed_after : -1]:
            report = reports.get(seen.time)
            if report is not None and track.number not in report["tid"]:
                _enter(report, track.number, seen, age=0)


def _enter(frame: Frame, number: int, seen: Observation, age: int) -> None:
    box = np.asarray(seen.record["bbox"])
    frame["tid"].append(number)
    frame["bbox"].append(box)
    frame["tracked_time"].append(age)
    for field in RECORDED:
        frame[field].append(seen.record.get(field))
    if age == 0:
        frame["tracked_ids"].append(number)
        frame["tracked_bbox"].append(box)
