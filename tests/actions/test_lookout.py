"""Windows of a video are computed in passes. A step ends when its time is over, which changes no answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle_schema import Clip, Preprocess
from models.layers.stepwise import JobState, StepCompletion
from models.people.heads import TrackFeatureDims
from models.people.keypoints import TOKEN_VALUES, Poses
from models.people.track_batch import POSE_VALUES
from models.systems.actions import detection_loop
from models.systems.actions.pipeline import ActionPipeline, ActionPipelineConfig
from models.systems.actions.pose_estimator import DetectorInput, MeshEstimator, PoseEstimator
from models.systems.actions.steps import ActionSteps
from models.systems.hmr2.model import HMR2, HMR2Config
from models.systems.lart.model import LART
from models.systems.onnx.pose_detector import PoseGraphConfig
from tests.actions.fake_pose_estimator import ColourEyes, two_people
from tests.actions.test_steps import MARGIN, RATE, STEP, assert_same, finish, job
from tests.support.bundles.actions import LABELS, SMALL

HMR2_CONFIG = HMR2Config(
    image_size=64, side_cut=8, width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_head_dim=8,
    decoder_hidden=16,
)  # fmt: skip
PREPROCESS = Preprocess(image_size=64, short_side=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class ColourDetector:
    """Fake detector of patches of pure colours."""

    config = PoseGraphConfig()

    def find(self, frames: Tensor, *, long_side: int | None = None) -> list[Poses]:
        found = ColourEyes().find([DetectorInput.from_frame(frame.numpy()) for frame in frames], [6] * len(frames))
        order = [np.argsort(-one.boxes[:, 4]) for one in found]
        return [Poses(one.poses.reshape(-1, 17, 3)[best], one.boxes[best]) for one, best in zip(found, order, strict=True)]


class CountedBodies(MeshEstimator):
    """Mesh estimator that records the number of crops of each pass, and fails in the passes `broken`."""

    def __init__(self, regressor: HMR2) -> None:
        super().__init__(ColourDetector(), regressor, PREPROCESS)  # type: ignore[arg-type]
        self.passes = list[int]()
        self.broken = set[int]()

    def read(self, crops: Tensor) -> NDArray[np.float32]:
        self.passes.append(len(crops))
        if len(self.passes) in self.broken:
            raise MemoryError
        return super().read(crops)


def bodies() -> CountedBodies:
    """Build HMR 2.0 with random weights."""
    torch.manual_seed(0)
    regressor = HMR2(HMR2_CONFIG).eval().requires_grad_(False)
    regressor.decoder.readout.init_cam.copy_(torch.tensor([[0.9, 0.0, 0.0]]))  # a camera before which people have a place
    return CountedBodies(regressor)


def steps_of(eyes: PoseEstimator) -> ActionSteps:
    torch.manual_seed(0)
    values = TOKEN_VALUES if isinstance(eyes, ColourEyes) else POSE_VALUES
    lart = LART(dataclasses.replace(SMALL, pose=TrackFeatureDims(values, 32, 32))).eval().requires_grad_(False)
    return ActionSteps(ActionPipeline(ActionPipelineConfig(step=STEP, margin=MARGIN), eyes, lart, Clip(frames=8, stride=1, rate=RATE)))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one pass, and passes of one crop."""
    monkeypatch.setattr(detection_loop, "STEP_S", -1.0)
    monkeypatch.setattr(detection_loop, "PASS_S", 0.0)
    monkeypatch.setattr(detection_loop, "WAIT_S", 600.0)


def test_bodies_are_followed_and_labelled_from_their_crops() -> None:
    """Run HMR 2.0 and LART in the published layout of tokens, with random weights."""
    [answer] = finish(steps_of(bodies()), job(two_people(30)))
    red, blue = (answer["boxes"][answer["boxes"][:, 4] == width] for width in (24, 30))
    assert len(red) == len(blue) == 30 and len(set(red[:, 0])) == len(set(blue[:, 0])) == 1
    assert answer["scores"].shape == (4, len(LABELS))


@pytest.mark.parametrize("eyes", [ColourEyes, bodies])
def test_where_steps_end_changes_no_answer(eyes: Callable[[], PoseEstimator], monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [job(two_people(30)), job(two_people(19, hidden=range(5, 10)))]
    patient = [finish(steps_of(eyes()), video)[0] for video in videos]
    monkeypatch.setattr(detection_loop, "STEP_S", -1.0)
    monkeypatch.setattr(detection_loop, "PASS_S", 0.0)
    for answer, expected in zip(finish(steps_of(eyes()), *videos), patient, strict=True):
        assert_same(answer, expected)


@pytest.mark.usefixtures("hurried")
def test_a_step_of_a_slow_network_covers_one_person() -> None:
    """Prove that a heartbeat and other jobs wait for one crop, however many people there are, and that each crop is progress."""
    eyes = bodies()
    steps = steps_of(eyes)
    [state] = steps.start([job(two_people(12))], [{}])
    shares, ended = [0.0], False
    while not ended:
        before = len(eyes.passes)
        with torch.inference_mode():
            [outcome] = steps.step([state], [False])
        assert sum(eyes.passes[before:]) <= 1
        if ended := isinstance(outcome, StepCompletion):
            break
        state = outcome.state
        assert state.done < state.total
        shares.append(state.done / state.total)
    assert sum(eyes.passes) == 24 and len(shares) > 24
    assert min(np.diff(shares)) > -0.05 and shares[len(shares) // 2] == pytest.approx(0.5, abs=0.2)


@pytest.mark.usefixtures("hurried")
def test_a_step_that_ends_within_a_window_can_be_taken_again() -> None:
    steps, video = steps_of(bodies()), job(two_people(12))
    [expected] = finish(steps, video)
    states = steps.start([video], [{}])
    with torch.inference_mode():
        while not isinstance(outcome := steps.step([states[-1]], [False])[0], StepCompletion):
            states.append(outcome.state)
        for restart in (1, 5, 18, len(states) - 1):
            state: JobState = states[restart]
            while not isinstance(outcome := steps.step([state], [False])[0], StepCompletion):
                state = outcome.state
            assert_same(expected, {name: values.numpy() for name, values in outcome.outputs.items()})


def test_people_who_are_not_followed_are_not_looked_at() -> None:
    eyes = bodies()
    [answer] = finish(steps_of(eyes), job(two_people(12)), people=1)
    assert sum(eyes.passes) == 12 and set(answer["boxes"][:, 4]) == {30.0}


def test_a_pass_that_fails_loses_no_frame() -> None:
    """Prove that a step that ran out of memory is taken again and goes on with the frames seen before."""
    eyes = bodies()
    [expected] = finish(steps_of(eyes), job(two_people(12)))
    eyes.passes.clear()
    eyes.broken = {1, 3}
    steps = steps_of(eyes)
    [state] = steps.start([job(two_people(12))], [{}])
    failures = 0
    with torch.inference_mode():
        while True:
            try:
                [outcome] = steps.step([state], [False])
            except MemoryError:
                failures += 1
                continue
            if isinstance(outcome, StepCompletion):
                break
            state = outcome.state
    assert failures == 2
    assert_same(expected, {name: values.numpy() for name, values in outcome.outputs.items()})


def test_a_step_does_not_wait_for_a_video_that_is_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove that a step takes only the frames that are there when it starts, four at most, and that the next steps take the others."""
    video = job(two_people(30))
    [expected] = finish(steps_of(ColourEyes()), video)
    monkeypatch.setattr(detection_loop, "STEP_S", -1.0)
    monkeypatch.setattr(detection_loop, "WAIT_S", -1.0)
    steps = steps_of(ColourEyes())
    [state] = steps.start([video], [{}])
    taken = 0
    with torch.inference_mode():
        while not isinstance(outcome := steps.step([state], [False])[0], StepCompletion):
            state, taken = outcome.state, taken + 1
            assert state.done == taken < state.total
    assert taken > 30 / 4  # the first one starts the program that reads
    assert_same(expected, {name: values.numpy() for name, values in outcome.outputs.items()})
