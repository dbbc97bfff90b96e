"""LART in its published layout: joints of the user's mesh, appearance by a video network, and refusals if one is missing."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from models.bundle import SPEC_FILE, Bundle, BundleError, read
from models.bundle_schema import Clip
from models.layers.stepwise import InProgress, InvalidInput, StepCompletion
from models.loading import load
from models.media.video import ClipLimits, Frames
from models.people.person_clips import GROUP_FRAMES, crop_and_resize, normalise_clip, resize_box
from models.people.person_clips import clip_frame_indices as frames_of_clip
from models.people.smpl import read_body
from models.people.track_batch import POSE_VALUES, TrackBatch, normalise_pose, pose_statistics
from models.systems.actions import detection_loop
from models.systems.actions.appearance_encoder import AppearanceEncoder, AppearanceQueue, BufferedFrame, PartialClip, encode_appearance
from models.systems.actions.person_tracks import PersonTrack, ScoreAccumulator, TrackDetection
from models.systems.actions.pipeline import ActionPipeline, ActionPipelineConfig
from models.systems.actions.pose_estimator import Detections, MeshEstimator, PersonObservations
from models.systems.actions.steps import ActionState, ActionSteps
from models.systems.lart.model import LART, predict_track
from models.systems.mvit.model import BoxPooling, MViT, PoolingBlock
from opsin.cli.app import app
from server.queue.messages import ServedBundle
from server.worker.loaded_bundles import LoadedBundles
from tests.actions.fake_pose_estimator import ColourEyes, two_people
from tests.actions.test_members import write_hmr2
from tests.actions.test_steps import assert_same, finish, finish_again, job
from tests.fake_cuda.device import StreamTracker
from tests.golden.case import GOLDEN, read_case
from tests.golden.replays.hmr2 import build
from tests.support.bundles.actions import (
    COLOURS,
    LAYOUT,
    SMALL,
    SMALL_MVIT,
    STRIDE,
    small_mvit,
    write_lart,
    write_mesh,
    write_movenet,
    write_mvit,
)
from tests.support.bundles.vit import write_tiny_vit

RATE = 15.0
STEP, MARGIN = 16, 14
MIXING = np.random.default_rng(0).normal(size=(5, POSE_VALUES + 135)) / 100


class BodyEyes(ColourEyes):
    """Fake detector of the same patches, whose poses and joints are functions of the box."""

    @property
    def values(self) -> Mapping[str, int]:
        return {"pose": POSE_VALUES, "joints": 135}

    def observe(self, detections: Detections, predicted: NDArray[np.float32]) -> PersonObservations:
        return dataclasses.replace(super().observe(detections, predicted), tokens=encode_boxes(detections.boxes))


def encode_boxes(boxes: NDArray[Any]) -> NDArray[np.float32]:
    """Map boxes to values of pose and joints: (N, 5) → (N, 364)."""
    tokens: NDArray[np.float32] = (boxes @ MIXING).astype(np.float32)
    return tokens


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a whole window, however slow the machine is."""
    monkeypatch.setattr(detection_loop, "STEP_S", float("inf"))
    monkeypatch.setattr(detection_loop, "WAIT_S", 600.0)


@pytest.fixture(scope="module")
def lart() -> LART:
    """LART whose scores depend on the appearance as much as on the rest."""
    torch.manual_seed(0)
    model = LART(LAYOUT).eval().requires_grad_(False)
    assert model.appearance_encoder is not None
    model.appearance_encoder[-1].weight.mul_(20)
    return model


@pytest.fixture
def steps(lart: LART) -> ActionSteps:
    describer = AppearanceEncoder(small_mvit(), COLOURS, Clip(frames=SMALL_MVIT.frames, stride=STRIDE))
    config = ActionPipelineConfig(step=STEP, margin=MARGIN)
    return ActionSteps(ActionPipeline(config, BodyEyes(), lart, Clip(frames=8, stride=1, rate=RATE), describer))


def frames_of(video: bytes) -> NDArray[np.uint8]:
    return np.stack([frame.pixels for frame in Frames(video, RATE, ClipLimits()).take(10**6)])


def features(mvit: MViT, images: Tensor, box: list[float]) -> Tensor:
    """Return the appearance of a box, (x, y, width, height), in a clip of uint8 (T, H, W, 3)."""
    clip, corners = (
        normalise_clip(crop_and_resize(images, 32), COLOURS.mean, COLOURS.std),
        resize_box(box, (images.shape[1], images.shape[2]), 32),
    )
    pooled: Tensor = mvit(clip[None], torch.cat([torch.zeros(1), corners])[None]).features[0]
    return pooled


def scores_of_track(lart: LART, frames: NDArray[np.uint8], first: int, boxes: NDArray[Any], detected: NDArray[np.bool_]) -> Tensor:
    """Follow the published procedure for a whole track at once: boxes (L, 5), zeros if the person was not seen → scores (L, actions).

    Every six frames get one feature from a clip of full frames; then all frames go through the network.
    """
    mvit, length = small_mvit(), len(boxes)
    looks = torch.zeros(length, mvit.head.in_features)
    for start in range(0, length, GROUP_FRAMES):
        end = min(start + GROUP_FRAMES, length)
        middle = (start + end) // 2
        rows = first + frames_of_clip(middle, length, frames=SMALL_MVIT.frames, stride=STRIDE)
        looks[start:end] = features(mvit, torch.from_numpy(frames)[rows], boxes[middle, :4].tolist())
    tokens = torch.from_numpy(encode_boxes(boxes))
    pose = normalise_pose(tokens[:, :POSE_VALUES], pose_statistics(LAYOUT.mean_std)).float()
    track = TrackBatch(
        pose[None, :, None],
        torch.from_numpy(detected).float()[None, :, None, None],
        joints=tokens[None, :, None, POSE_VALUES:],
        appearance=looks[None, :, None],
    )
    scores: Tensor = predict_track(lart, track, step=STEP, margin=MARGIN).actions.sigmoid()[0, :, 0]
    return scores


@pytest.mark.parametrize("hidden", [range(0), range(20, 29), range(7), range(60, 100)], ids=["never", "between", "at first", "at last"])
def test_streamed_video_equals_published_procedure(steps: ActionSteps, lart: LART, hidden: range) -> None:
    """Prove it for a person who stands and one who walks: always visible, hidden in the middle of a group, late, or gone before the end."""
    video = two_people(100, hidden=hidden)
    [answer] = finish(steps, job(video))
    frames = frames_of(video)
    people = sorted({int(number) for number in answer["boxes"][:, 0]})
    assert len(people) == 2 and len(frames) == 100
    for person in people:
        tracked = answer["boxes"][answer["boxes"][:, 0] == person]
        rows = np.round(tracked[:, 1] * RATE).astype(int)
        first, end = int(rows[0]), int(rows[-1]) + 1
        boxes, detected = np.zeros((end - first, 5), np.float32), np.zeros(end - first, bool)
        boxes[rows - first], detected[rows - first] = tracked[:, 2:], True
        scores = scores_of_track(lart, frames, first, boxes, detected).numpy()
        seconds = answer["seconds"][answer["seconds"][:, 0] == person]
        assert len(seconds) == int((end - 1) / RATE) + 1
        for second, mean_scores in zip(seconds, answer["scores"][answer["seconds"][:, 0] == person], strict=True):
            key = round((int(second[1]) + 0.5) * RATE)
            assert np.allclose(mean_scores, scores[max(0, key - 3 - first) : key + 3 - first].mean(axis=0), atol=1e-5)


def test_appearance_matters(steps: ActionSteps) -> None:
    """Compare the scores of the same boxes under another network for the appearance."""
    video = two_people(60)
    [plain] = finish(steps, job(video))
    other = small_mvit()
    other.patch_embed.proj.weight.mul_(-1)
    describer = AppearanceEncoder(other, COLOURS, Clip(frames=SMALL_MVIT.frames, stride=STRIDE))
    model = steps._model
    pipeline = ActionPipeline(model.config, BodyEyes(), model.network, Clip(frames=8, stride=1, rate=RATE), describer)
    [changed] = finish(ActionSteps(pipeline), job(video))
    assert np.array_equal(plain["boxes"], changed["boxes"])
    assert np.abs(plain["scores"] - changed["scores"]).max() > 1e-3


def test_where_steps_end_changes_no_answer(steps: ActionSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    """End steps between any two blocks of the video network, let two jobs take turns, and take steps again."""
    first, second = job(two_people(50)), job(two_people(33, hidden=range(5, 10)))
    alone = [finish(steps, one)[0] for one in (first, second)]
    monkeypatch.setattr("models.systems.actions.steps.APPEARANCE_BUDGET_S", 1e-9)
    for answer, crowd in zip(alone, finish(steps, first, second), strict=True):
        assert_same(answer, crowd)
    [state] = steps.start([first], [{}])
    with torch.inference_mode():
        taken = 0
        while not isinstance(outcome := steps.step([state], [False])[0], StepCompletion):
            taken += 1
            if taken % 7 == 0:
                steps.step([state], [False])
            state = outcome.state
    assert_same(alone[0], {name: values.numpy() for name, values in outcome.outputs.items()})


def test_clip_with_failed_part_restarts_with_its_step(steps: ActionSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    video = job(two_people(50))
    [expected] = finish(steps, video)
    fed_forward, failures = PoolingBlock._feed_forward, list[str]()

    def fails_twice(block: PoolingBlock, x: Tensor) -> Tensor:
        if len(failures) < 2:
            failures.append("memory")
            raise torch.OutOfMemoryError("out of memory")
        return fed_forward(block, x)

    monkeypatch.setattr(PoolingBlock, "_feed_forward", fails_twice)
    answer = finish_again(steps, video)
    assert len(failures) == 2
    assert_same(expected, answer)


def test_memory_between_parts_of_a_clip_is_counted_and_freed(steps: ActionSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.systems.actions.steps.APPEARANCE_BUDGET_S", 0.0)
    [state] = steps.start([job(two_people(50))], [{}])
    nbytes = 0
    with torch.inference_mode():
        while not nbytes:
            outcome = steps.step([state], [False])[0]
            assert isinstance(outcome, InProgress) and isinstance(outcome.state, ActionState)
            state = outcome.state
            nbytes = state.unfinished.nbytes
    assert isinstance(state, ActionState)
    assert nbytes >= 4 * 8 * (1 + 2 * 8 * 9)  # float32, 8 wide, a class token and the patches of 4 frames of 32 by 38 pixels
    assert state.nbytes - dataclasses.replace(state, unfinished=PartialClip()).nbytes == nbytes
    begun = weakref.ref(state.unfinished.parts)
    state.source.close()
    del state, outcome
    gc.collect()
    assert begun() is None


def test_frames_are_kept_only_as_long_as_clips_need_them(steps: ActionSteps) -> None:
    """Prove the limit: a clip reaches 6 rows to either side, a group has 6 and a step 8."""
    [state] = steps.start([job(two_people(120))], [{}])
    still_counts = []
    with torch.inference_mode():
        while not isinstance(outcome := steps.step([state], [False])[0], StepCompletion):
            state = outcome.state
            assert isinstance(state, ActionState)
            still_counts.append(len(state.stills))
            assert state.nbytes - dataclasses.replace(state, stills=()).nbytes == still_counts[-1] * 32 * 38 * 3
    assert 12 <= max(still_counts) <= 6 + 6 + 6 + 8


def test_tracks_bring_their_appearance(steps: ActionSteps) -> None:
    values = POSE_VALUES + 135 + SMALL_MVIT.width * 4
    tracks = {
        "person": torch.ones(30, dtype=torch.int32),
        "time": torch.arange(30, dtype=torch.float64) / RATE,
        "box": torch.ones(30, 5),
        "pose": torch.zeros(30, 0),
        "token": torch.linspace(-1, 1, 30)[:, None].repeat(1, values),
        "info": torch.zeros(5, dtype=torch.float64),
    }
    [answer] = finish(steps, tracks)
    assert answer["seconds"][:, 1:].tolist() == [[0.0, 1.0], [1.0, 2.0]]
    looks = tracks["token"].clone()
    looks[:, -1] += 3
    [other] = finish(steps, tracks | {"token": looks})
    assert np.abs(answer["scores"] - other["scores"]).max() > 1e-4
    with pytest.raises(InvalidInput, match=f"tracks: tokens of 364 values where this bundle takes {values}"):
        steps.start([tracks | {"token": torch.zeros(30, POSE_VALUES + 135)}], [{}])


def sighting(row: int) -> TrackDetection:
    return TrackDetection(1, row, 1, np.zeros(3, np.float32), np.array([row / RATE, 10.0, 10.0, 20.0, 40.0, 0.9]), np.zeros(0))


def test_a_group_waits_until_its_clip_is_known(lart: LART) -> None:
    """Prove that a group waits for rows that its clip may still reach, since clips never leave the track."""
    track = PersonTrack.start(sighting(4), ScoreAccumulator.empty(RATE, 4, 4), appearance=2).with_detections(
        [sighting(row) for row in range(4, 13)], 13
    )
    assert track.group(6) is None
    track = track.with_detections([sighting(13)], 14)
    group = track.group(6)
    assert group is not None and (group.first, group.end, group.centre) == (0, 6, 3) and track.complete_end == 4
    described = track.with_appearance(group, np.array([1.0, 2.0]))
    assert described.complete_end == 10 and described.group(6) is None
    assert described.tokens[:6].tolist() == [[0, 0, 0, 1, 2]] * 6 and not described.tokens[6:].any()
    ended = dataclasses.replace(described, ended=True)
    rest = ended.group(6)
    assert rest is not None and (rest.first, rest.end) == (6, 10)


@pytest.mark.parametrize("aligned", [True, False])
def test_person_hidden_mid_clip_has_feature_of_empty_box(*, aligned: bool) -> None:
    """Expect zeros with aligned pooling. Without it an empty box covers one cell of the map, and the feature is that of the corner."""
    model = small_mvit(dataclasses.replace(SMALL_MVIT, boxes=BoxPooling(aligned=aligned)))
    describer = AppearanceEncoder(model, COLOURS, Clip(frames=SMALL_MVIT.frames, stride=STRIDE))
    seen = [sighting(row) for row in range(40) if row != 3]
    track = PersonTrack.start(seen[0], ScoreAccumulator.empty(RATE, 0, 4), appearance=describer.values).with_detections(seen, 40)
    frames = np.random.default_rng(0).integers(0, 256, (40, 32, 38, 3), np.uint8)
    job = AppearanceQueue([track], frozenset([1]), [BufferedFrame(row, frame, (32, 38)) for row, frame in enumerate(frames)], PartialClip())
    with torch.inference_mode():
        encode_appearance(describer, [job], 600.0)
        rows = frames_of_clip(3, 40, frames=SMALL_MVIT.frames, stride=STRIDE)
        pooled = features(model, torch.from_numpy(frames)[rows], [0.0] * 4).numpy()
    assert np.any(pooled) != aligned
    assert np.allclose(job.tracks[0].tokens[:6, 3:], pooled, atol=1e-5)
    assert job.tracks[0].tokens[6:36, 3:].any(axis=1).all()


def test_only_confirmed_people_are_described() -> None:
    describer = AppearanceEncoder(small_mvit(), COLOURS, Clip(frames=SMALL_MVIT.frames, stride=STRIDE))
    track = PersonTrack.start(sighting(0), ScoreAccumulator.empty(RATE, 0, 4), appearance=describer.values).with_detections(
        [sighting(row) for row in range(40)], 40
    )
    stills = [BufferedFrame(row, np.full((32, 38, 3), row, np.uint8), (120, 160)) for row in range(40)]
    doubtful, believed = (AppearanceQueue([track], frozenset(numbers), stills, PartialClip()) for numbers in ((), (1,)))
    with torch.inference_mode():
        encode_appearance(describer, [doubtful, believed], 600.0)
    assert doubtful.tracks[0].complete_end == 0 and believed.tracks[0].complete_end == 36
    assert [still.row for still in believed.still_needed(describer)] == list(range(30, 40))
    gone = AppearanceQueue([dataclasses.replace(believed.tracks[0], ended=True)], frozenset([1]), stills, PartialClip())
    with torch.inference_mode():
        encode_appearance(describer, [gone], 600.0)
    assert gone.tracks[0].complete_end == 40 and gone.still_needed(describer) == ()


def test_a_whole_clip_keeps_what_its_streams_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each part of a clip on a stream of its own, also the one that finishes it."""
    monkeypatch.setattr("models.systems.mvit.pooling_attention.OPS_PER_PART", 20_000)
    monkeypatch.setattr("models.systems.mvit.model.OPS_PER_PART", 20_000)
    tracker = StreamTracker()
    monkeypatch.setattr("models.systems.mvit.pooling_attention.keep_for_current_stream", tracker.keep)
    describer = AppearanceEncoder(small_mvit(), COLOURS, Clip(frames=SMALL_MVIT.frames, stride=STRIDE))
    seen = [sighting(row) for row in range(40)]
    track = PersonTrack.start(seen[0], ScoreAccumulator.empty(RATE, 0, 4), appearance=describer.values).with_detections(seen, 40)
    stills = [BufferedFrame(row, np.full((32, 38, 3), row, np.uint8), (32, 38)) for row in range(40)]
    with torch.inference_mode(), tracker:
        outputs = []
        for output in describer.describe(stills, track, 3):
            outputs.append(output)
            tracker.stream += 1
    assert len(outputs) > 10 and isinstance(outputs[-1], np.ndarray)
    assert not tracker.unkept


# --- joints ---


def test_joints_are_those_of_the_mesh_moved_by_the_camera(tmp_path: Path) -> None:
    """Compare with recorded joints of HMR2 and its synthetic mesh. The camera's depth is divided by 200 (golden `phalp_to_tracklet`)."""
    recorded = read_case(GOLDEN / "hmr2" / "tiny_forward")
    eyes = MeshEstimator(None, build(recorded), COLOURS, read_body(write_mesh(tmp_path / "body.npz")))  # type: ignore[arg-type]
    with torch.inference_mode():
        crop_values = eyes.read(recorded.inputs["img"])
    joints, exact = recorded.outputs["keypoints_3d"], recorded.tolerance
    torch.testing.assert_close(torch.from_numpy(crop_values[:, 229:]), joints.flatten(1), atol=exact.atol, rtol=exact.rtol)
    found = Detections(np.array([[20, 30, 40, 60, 0.9], [5, 5, 30, 80, 0.8]], np.float32), np.zeros((2, 51), np.float32), (120, 160))
    seen = eyes.observe(found, crop_values)
    tokens = torch.from_numpy(seen.tokens)
    camera = tokens[:, 226:229]
    before = np.column_stack([camera[:, :2], (200 * camera[:, 2]).clamp(min=0.01)])
    assert np.allclose(seen.locations[:, 90:93], before, rtol=1e-5)
    assert tokens.shape == (2, POSE_VALUES + 135)
    expected = torch.cat([joints, torch.zeros(2, 1, 3)], dim=1) + camera[:, None]
    torch.testing.assert_close(tokens[:, POSE_VALUES:], expected.flatten(1), atol=exact.atol, rtol=exact.rtol)


def test_no_detections_give_no_joints(tmp_path: Path) -> None:
    network = load(write_hmr2(tmp_path)).model
    eyes = MeshEstimator(None, network, COLOURS, read_body(write_mesh(tmp_path / "body.npz")))  # type: ignore[arg-type]
    empty = Detections(np.zeros((0, 5), np.float32), np.zeros((0, 51), np.float32), (120, 160))
    assert eyes.observe(empty, np.zeros((0, 0), np.float32)).tokens.shape == (0, POSE_VALUES + 135)


# --- bundles ---


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder of bundles with all members."""
    folder = tmp_path / "bundles"
    write_movenet(folder)
    write_hmr2(folder)
    write_mvit(folder)
    write_lart(folder, LAYOUT, "lart")
    return folder


def join(root: Path, name: str, *arguments: str) -> Any:
    words = ["bundles", "join", name, "--bundles", str(root), "--pose", "small-hmr2", "--detector", "movenet", "--actions", "lart"]
    return CliRunner().invoke(app, [*words, "--rate", "15", *arguments])


def join_people(root: Path, body: Path) -> Bundle:
    made = join(root, "people", "--appearance", "small-mvit", "--body", str(body))
    assert made.exit_code == 0, made.exception
    return read(root / "people" / "1.0.0")


@pytest.mark.parametrize("name", ["body.npz", "body.safetensors"])
def test_a_mesh_is_named_and_stays_where_it_is(root: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    body = write_mesh(tmp_path / name)
    bundle = join_people(root, Path(name))
    mesh = json.loads((bundle.path / SPEC_FILE).read_text())["external"]["body"]
    assert mesh["path"] == str(body.resolve()) and mesh["bytes"] == body.stat().st_size and len(mesh["sha256"]) == 64
    assert sorted(file.name for file in bundle.path.iterdir()) == [SPEC_FILE, "model.safetensors"]
    assert (bundle.path / "model.safetensors").stat().st_size < 100
    loaded = load(bundle)
    model = loaded.model
    assert isinstance(model, ActionPipeline) and LAYOUT.appearance is not None
    assert dict(model.values) == {"pose": POSE_VALUES, "joints": 135, "appearance": LAYOUT.appearance.values}
    assert (model.config.step, model.config.margin) == (15, 14)
    assert loaded.steps is not None


def test_published_windows_output_32_rows_with_32_around_them(root: Path, tmp_path: Path) -> None:
    write_lart(root, dataclasses.replace(LAYOUT, frames=125), "long-lart")
    body = write_mesh(tmp_path / "body.npz")
    assert join(root, "long", "--appearance", "small-mvit", "--body", str(body), "--actions", "long-lart").exit_code == 0
    config = read(root / "long" / "1.0.0").spec.config
    assert (config["step"], config["margin"]) == (32, 32)


def test_worker_without_mesh_says_so_and_serves_once_there(root: Path, tmp_path: Path) -> None:
    body = write_mesh(tmp_path / "body.npz")
    bundle = join_people(root, body)
    body.rename(tmp_path / "away")
    with pytest.raises(BundleError, match=f"external.body: {body}: missing"):
        load(bundle)

    def warm_up(bundle: Bundle) -> object:
        load(bundle)
        raise BundleError("enough for this test")

    bundles = LoadedBundles(root, warm_up, lambda spec: None, lambda: None)  # type: ignore[arg-type]
    assert f"external.body: {body}: missing" in reason(bundles)
    (tmp_path / "away").rename(body)
    assert reason(bundles) == "enough for this test"


def reason(bundles: LoadedBundles) -> str:
    bundles.refresh({})
    [announced] = [one for one in bundles.announcements(1) if one.name == "people"]
    assert isinstance(announced, ServedBundle) and announced.state == "unavailable"
    return announced.reason


def test_another_mesh_is_refused(root: Path, tmp_path: Path) -> None:
    body = write_mesh(tmp_path / "body.npz")
    bundle = join_people(root, body)
    content = bytearray(body.read_bytes())
    content[1000] ^= 1
    body.write_bytes(content)
    with pytest.raises(BundleError, match=r"its SHA-256 is not the one in bundle\.json"):
        load(bundle)
    verified = CliRunner().invoke(app, ["bundles", "verify", "people", "--bundles", str(root)])
    assert verified.exit_code == 1 and "external.body" in str(verified.exception)


def test_a_lart_of_raw_poses_has_statistics_that_change_nothing(root: Path) -> None:
    """Prove that neutral statistics are accepted. Without any it is refused like one whose statistics were forgotten (see `refusals`)."""
    neutral = ((0.0,) * 226, (1.0,) * 226)
    write_lart(root, dataclasses.replace(LAYOUT, joints=None, appearance=None, mean_std=neutral), "raw")
    assert join(root, "raw-poses", "--actions", "raw").exit_code == 0
    pose = torch.randn(3, POSE_VALUES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalise_pose(pose, pose_statistics(neutral)).float(), pose)


def test_the_digest_covers_the_mesh(root: Path, tmp_path: Path) -> None:
    body = write_mesh(tmp_path / "body.npz")
    first = join_people(root, body).spec
    changed = first.model_copy(update={"external": {"body": first.external["body"].model_copy(update={"sha256": "0" * 64})}})
    assert changed.digest() != first.digest()
    assert "external" not in json.loads(read(root / "small-mvit" / "1").spec.to_bytes())


def refusals(root: Path, folder: Path) -> Iterator[tuple[Sequence[str], str]]:
    body, pickled = str(write_mesh(folder / "body.npz")), folder / "SMPL_NEUTRAL.pkl"
    pickled.write_bytes(b"\x80\x04.")
    write_mvit(root, dataclasses.replace(SMALL_MVIT, boxes=None), "whole-clips")
    write_lart(root, SMALL, "poses")
    write_lart(root, dataclasses.replace(LAYOUT, joints=None, appearance=None, mean_std=None), "without-statistics")
    write_tiny_vit(root)
    yield (
        ("--appearance", "small-mvit"),
        r"lart@1 needs 135 values of joints .* the other members provide 0; they need a body's mesh \(--body\)",
    )
    yield ("--body", body), r"needs 32 values of appearance .* the other members provide 0; it needs a video network \(--appearance\)"
    yield ("--body", body, "--appearance", "tiny"), "members.appearance: tiny@1 is of architecture vit; mvit is needed"
    yield ("--body", body, "--appearance", "whole-clips"), "whole-clips@1: it classifies whole clips, and a network with a box head"
    yield ("--body", str(folder / "none.npz")), "none.npz: no such file"
    yield ("--body", str(pickled), "--appearance", "small-mvit"), "SMPL_NEUTRAL.pkl: a body's file is an .npz or a .safetensors"
    yield ("--body", body, "--pose", "movenet", "--actions", "poses"), "external.body: movenet@1.0.0 returns keypoints"
    yield ("--appearance", "small-mvit", "--pose", "movenet", "--actions", "poses"), "members.appearance: it needs whole frames"
    yield ("--actions", "without-statistics"), "without-statistics@1 lacks the statistics of its poses: import it with --set mean_std"


def test_members_that_do_not_fit_leave_no_bundle(root: Path, tmp_path: Path) -> None:
    for arguments, sentence in refusals(root, tmp_path):
        made = join(root, "refused", *arguments)
        assert made.exit_code != 0
        assert re.search(sentence, str(made.exception)), str(made.exception)
        assert not (root / "refused" / "1.0.0").exists()
