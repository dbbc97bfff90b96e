"""Track files and clips beyond the recorded cases: files written by joblib itself, files that hold code, training mode, all alignments."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch

from models.media.safe_joblib import UnsafeFile, read_joblib
from models.people.ava import EVALUATED_CLASSES
from models.people.tracklets import Tracklet, TrackletLabels, build_clip, read_results, read_tracklet, shuffle, tracklets_from_results
from tests.golden.case import GOLDEN

CASES = GOLDEN / "lart"
MEAN_STD = torch.stack([torch.full((226,), 0.25), torch.full((226,), 2.0)]).unsqueeze(1)

CONTENT: dict[str, Any] = {
    "numbers": np.arange(12, dtype=np.float32).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    "text": np.array(["a", "bcd"]),
    "truth": np.array([True, False]),
    "none": np.zeros((0, 5)),
    "scalar": np.float64(1.5),
    ("video.mp4", 40): [1, "x", None, {"counts": b"abc"}, -1],
}


PACKED: list[int | tuple[str, int]] = [3, ("gzip", 3), ("bz2", 9), ("xz", 3), ("lzma", 3)]


@pytest.mark.parametrize("compress", [0, *PACKED])
def test_what_joblib_wrote_is_read_as_joblib_reads_it(tmp_path: Path, compress: int | tuple[str, int]) -> None:
    file = tmp_path / "content.pkl"
    joblib.dump(CONTENT, file, compress=compress)
    read = read_joblib(file)
    assert read.keys() == CONTENT.keys()
    for key, value in CONTENT.items():
        if isinstance(value, np.ndarray):
            assert read[key].dtype == value.dtype
            assert np.array_equal(read[key], value)
        else:
            assert read[key] == value


class Code:
    """Runs when a plain pickle is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("compress", [0, 3])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path, compress: int) -> None:
    mark, file = tmp_path / "ran", tmp_path / "content.pkl"
    joblib.dump({"fid": np.zeros(3), "code": Code(mark)}, file, compress=compress)
    with pytest.raises(UnsafeFile, match=r"names posix\.mkdir"):
        read_joblib(file)
    assert not mark.exists()


def test_code_in_array_of_objects_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, file = tmp_path / "ran", tmp_path / "content.pkl"
    joblib.dump(np.array([Code(mark)], dtype=object), file)
    with pytest.raises(UnsafeFile, match="array of object"):
        read_joblib(file)
    assert not mark.exists()


def test_damaged_and_oversized_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "content.pkl"
    joblib.dump(np.zeros(100_000), file)
    full = file.read_bytes()
    file.write_bytes(full[:-8])
    with pytest.raises(UnsafeFile, match="truncated"):
        read_joblib(file)
    file.write_bytes(b"no pickle at all")
    with pytest.raises(UnsafeFile, match="damaged, or no joblib file"):
        read_joblib(file)
    for packing in PACKED:
        joblib.dump(np.zeros(100_000), file, compress=packing)
        with pytest.raises(UnsafeFile, match="unpacks to more than 1000 bytes"):
            read_joblib(file, max_bytes=1000)
        full = file.read_bytes()
        file.write_bytes(full[: len(full) * 3 // 4])
        with pytest.raises(UnsafeFile, match="truncated"):
            read_joblib(file)
        file.write_bytes(full[:6] + bytes(20))
        with pytest.raises(UnsafeFile, match=r"damaged|truncated"):
            read_joblib(file)


def test_foreign_file_is_refused_with_missing_names(tmp_path: Path) -> None:
    file = tmp_path / "content.pkl"
    joblib.dump({"fid": np.zeros((4, 1, 1))}, file)
    with pytest.raises(UnsafeFile, match="pose_shape"):
        read_tracklet(file)
    with pytest.raises(UnsafeFile, match="not a tracker's results"):
        read_results(file)


def test_pose_of_track_ends_in_camera_with_depth_divided_once() -> None:
    results = read_results(CASES / "phalp_to_tracklet" / "phalp_demo.pkl")
    first = next(iter(results.values()))
    before = float(first["camera"][0][2])
    track = tracklets_from_results(results)[1]
    assert np.array_equal(track.pose[:, 226:], track.camera)
    assert track.camera[0, 2] == pytest.approx(before / 200)
    assert float(first["camera"][0][2]) == before  # the caller's arrays stay
    assert np.array_equal(tracklets_from_results(results)[1].camera, track.camera)


def test_predicted_frames_are_missing_and_videos_sort_by_time() -> None:
    """A tracker that read a video itself has (video, time) for a frame's name; ids may be numpy's."""
    ages = {3: [None, 0, 2, 0, 1], 1: [None, None, 0, None, None], 7: [1, 1, None, None, None]}  # 7 was never observed
    results = {}
    for frame in range(5):
        seen = [(number, of[frame]) for number, of in ages.items() if of[frame] is not None]
        people = [100.0 * number + frame for number, _ in seen]
        results["video.mp4", frame * 40] = {
            "tid": [np.int64(number) for number, _ in seen],
            "tracked_time": [age for _, age in seen],
            "tracked_ids": [7, *(number for number, age in seen if age == 0)],
            "smpl": [
                {"global_orient": np.full((1, 3, 3), value), "body_pose": np.zeros((23, 3, 3)), "betas": np.zeros(10)} for value in people
            ],
            **{name: [np.full(3, value) for value in people] for name in ("camera", "camera_bbox")},
            "3d_joints": [np.full((45, 3), value) for value in people],
            "bbox": [np.full(4, value) for value in people],
            "size": [[480, 640] for _ in people],
            "conf": [0.5 for _ in people],
        }
    tracks = tracklets_from_results(results)
    assert sorted(tracks) == [1, 3]
    gap = tracks[3]
    assert gap.frames.tolist() == [1, 2, 3] and gap.detected.tolist() == [1, 0, 1]
    assert gap.names == ("('video.mp4', 40)", "('video.mp4', 80)", "('video.mp4', 120)")
    assert gap.pose[:, 0].tolist() == [301, 0, 303] and gap.camera[:, 2].tolist() == [301 / 200, 0, 303 / 200]
    assert gap.sizes.tolist() == [[480, 640], [0, 0], [480, 640]] and gap.confidences.tolist() == [0.5, 0, 0.5]
    assert len(tracks[1]) == 1


def track(frames: range, seed: int = 0, missing: tuple[int, ...] = ()) -> Tracklet:
    random, length = np.random.default_rng(seed), len(frames)
    detected = np.array([float(frame not in missing) for frame in frames])
    return Tracklet(
        frames=np.array(frames, np.float64),
        pose=random.normal(size=(length, 229)) * detected[:, None],
        joints=random.normal(size=(length, 45, 3)),
        camera=random.normal(size=(length, 3)),
        crop_camera=random.normal(size=(length, 3)),
        detected=detected,
        names=tuple(f"{frame:06d}.jpg" for frame in frames),
        sizes=np.full((length, 2), 100.0),
        boxes=random.uniform(size=(length, 4)),
        confidences=np.ones(length),
        labels=TrackletLabels(np.full(length, 1.0), random.uniform(size=(length, 80)), random.normal(size=(length, 5))),
    )


EGO = range(100, 120)


@pytest.mark.parametrize(
    ("other", "rows"),
    [
        (range(104, 108), range(4, 8)),
        (range(90, 105), range(5)),
        (range(115, 140), range(15, 20)),
        (EGO, range(20)),
        (range(100, 140), range(20)),
        (range(90, 120), range(20)),
        (range(90, 140), range(0)),
        (range(80, 100), range(0)),
        (range(120, 130), range(0)),
        (range(104, 105), range(0)),
    ],
    ids=["inside", "head cut", "tail cut", "the same", "from the start on", "to the end", "around", "before", "after", "one frame"],
)
def test_others_are_aligned_by_frame(other: range, rows: range) -> None:
    clip = build_clip(track(EGO), [track(other, seed=1)], frames=25, people=3, mean_std=MEAN_STD)
    assert clip.frames[:, 1, 0].nonzero().flatten().tolist() == list(rows)
    assert all(clip.frames[row, 1, 0] == 100 + row for row in rows)
    assert clip.tracks.pose[0, :, 1].abs().sum(dim=1).nonzero().flatten().tolist() == list(rows)
    assert not clip.frames[:, 2].any()


def test_skipped_track_leaves_gap_and_surplus_ones_are_dropped() -> None:
    around, inside, surplus = track(range(90, 140), 1), track(range(104, 108), 2), track(range(101, 110), 3)
    clip = build_clip(track(EGO), [around, inside, surplus], frames=20, people=3, mean_std=MEAN_STD)
    assert not clip.targets.detected[:, 1].any()
    assert clip.targets.detected[4:8, 2].all()


@pytest.mark.parametrize(("length", "visible"), [(10, 9), (12, 11), (13, 12), (14, 12), (40, 12)])
def test_training_uses_first_frames_and_one_less_of_short_tracks(length: int, visible: int) -> None:
    clip = build_clip(track(range(length)), frames=12, people=1, mean_std=MEAN_STD, training=True)
    assert clip.names.count("-1") == 12 - visible
    full = build_clip(track(range(length)), frames=12, people=1, mean_std=MEAN_STD)
    assert full.names.count("-1") == max(0, 12 - length)


def test_only_frames_of_a_track_are_normalised_missing_ones_too() -> None:
    clip = build_clip(track(range(6), missing=(2,)), frames=8, people=1, mean_std=MEAN_STD)
    assert torch.allclose(clip.tracks.pose[0, 2, 0, :226], torch.tensor(-0.125).expand(226))
    assert not clip.tracks.pose[0, 6:].any()
    assert not clip.targets.pose[2].any()


def test_labels_are_the_models_classes_in_front_or_all_of_them() -> None:
    ego = track(range(6))
    assert ego.labels is not None
    sixty = build_clip(ego, frames=6, people=1, mean_std=MEAN_STD).targets.actions[:, 0]
    everything = build_clip(ego, frames=6, people=1, mean_std=MEAN_STD, classes=None).targets.actions[:, 0]
    assert np.allclose(everything, ego.labels.actions)
    assert np.allclose(sixty[:, :60], ego.labels.actions[:, np.array(EVALUATED_CLASSES) - 1])
    assert not sixty[:, 60:].any()


def test_tracks_without_features_get_zeros_of_requested_width() -> None:
    bare = track(EGO)
    assert bare.labels is not None
    bare = replace(bare, labels=replace(bare.labels, appearance=np.zeros((len(bare), 0))))
    alone = build_clip(bare, frames=20, people=2, mean_std=MEAN_STD, appearance=5).tracks.appearance
    assert alone is not None and alone.shape == (1, 20, 2, 5) and not alone.any()
    adjacent = build_clip(bare, [track(EGO, seed=1)], frames=20, people=2, mean_std=MEAN_STD).tracks.appearance
    assert adjacent is not None and not adjacent[0, :, 0].any() and adjacent[0, :, 1].all()


def test_a_track_without_labels_makes_no_training_clip() -> None:
    with pytest.raises(ValueError, match="labels"):
        build_clip(replace(track(EGO), labels=None), frames=20, people=1, mean_std=MEAN_STD)


def test_order_of_other_tracks_is_random_by_seed() -> None:
    others = [track(range(start, start + 3)) for start in range(10)]
    first = [other.frames[0] for other in shuffle(others, seed=3)]
    assert first == [other.frames[0] for other in shuffle(others, seed=3)]
    assert sorted(first) == list(range(10))
    assert first != sorted(first)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("length", [0, 1])
def test_a_track_of_one_frame_makes_no_clip(length: int, training: bool) -> None:
    with pytest.raises(ValueError, match="a track of one frame or none makes no clip"):
        build_clip(track(range(length)), frames=12, people=1, mean_std=MEAN_STD, training=training)
    assert build_clip(track(range(2)), frames=12, people=1, mean_std=MEAN_STD, training=training).names[0] != "-1"
