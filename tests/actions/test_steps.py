"""Videos are processed window by window: detection, tracking, and the labels of LART."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.bundle_schema import Clip, FileDigest
from models.layers.stepwise import InvalidInput, StepCompletion
from models.media.video import ClipLimits, probe
from models.people.track_batch import TrackBatch
from models.systems.actions import detection_loop
from models.systems.actions.job_stats import COUNTS
from models.systems.actions.person_tracks import TrackWindow
from models.systems.actions.pipeline import ActionPipeline, ActionPipelineConfig
from models.systems.actions.steps import ActionSteps
from models.systems.lart.model import LART, predict_track
from server.tasks.actions import ActionsPlan
from server.tasks.registry import TASKS
from tests.actions.fake_pose_estimator import ColourEyes, cut_clip, two_people
from tests.support.bundles.actions import LABELS, SMALL
from tests.support.videos import clip, every, pictures

RATE = 15.0
STEP, MARGIN = 16, 14


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a whole window, however slow the machine is."""
    monkeypatch.setattr(detection_loop, "STEP_S", float("inf"))
    monkeypatch.setattr(detection_loop, "WAIT_S", 600.0)


@pytest.fixture(scope="module")
def lart() -> LART:
    torch.manual_seed(0)
    return LART(SMALL).eval().requires_grad_(False)


@pytest.fixture
def steps(lart: LART) -> ActionSteps:
    config = ActionPipelineConfig(step=STEP, margin=MARGIN)
    return ActionSteps(ActionPipeline(config, ColourEyes(), lart, Clip(frames=8, stride=1, rate=RATE)))


def job(video: bytes) -> dict[str, torch.Tensor]:
    facts = probe(video, ClipLimits())
    info = torch.tensor([facts.width, facts.height, facts.fps, facts.frames, facts.duration_s], dtype=torch.float64)
    return {"video": torch.frombuffer(bytearray(video), dtype=torch.uint8), "info": info}


def finish(steps: ActionSteps, *jobs: dict[str, torch.Tensor], **options: Any) -> list[dict[str, np.ndarray]]:
    """Run jobs together until each is complete."""
    states = dict(enumerate(steps.start(list(jobs), [options] * len(jobs))))
    answers: dict[int, dict[str, np.ndarray]] = {}
    with torch.inference_mode():
        while states:
            outcomes = steps.step(list(states.values()), [False] * len(states))
            for number, outcome in zip(list(states), outcomes, strict=True):
                if isinstance(outcome, StepCompletion):
                    answers[number] = {name: values.numpy() for name, values in outcome.outputs.items()}
                    del states[number]
                else:
                    states[number] = outcome.state
    return [answers[number] for number in range(len(jobs))]


def finish_again(steps: ActionSteps, one: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Run a job until it is complete, and take a step again that ran out of memory, as a worker does."""
    [state] = steps.start([one], [{}])
    with torch.inference_mode():
        while True:
            try:
                [outcome] = steps.step([state], [False])
            except torch.OutOfMemoryError:
                continue
            if isinstance(outcome, StepCompletion):
                return {name: values.numpy() for name, values in outcome.outputs.items()}
            state = outcome.state


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for name in ("boxes", "poses", "seconds"):
        assert np.array_equal(first[name], second[name]), name
    assert np.allclose(first["scores"], second["scores"], atol=1e-6)


def test_two_people_have_one_number_each_and_correct_boxes(steps: ActionSteps) -> None:
    [answer] = finish(steps, job(two_people()))
    boxes = answer["boxes"]
    red, blue = boxes[boxes[:, 4] == 24], boxes[boxes[:, 4] == 30]
    assert len(boxes) == 120 and len(set(red[:, 0])) == len(set(blue[:, 0])) == 1
    assert np.allclose(red[:, 2], 8 + np.arange(60)) and np.allclose(red[:, 1], np.arange(60) / RATE, atol=2e-3)
    assert answer["poses"].shape == (120, 53)
    assert [row[1:].tolist() for row in answer["seconds"] if row[0] == 1] == [[second, second + 1] for second in range(4)]
    assert answer["scores"].shape == (8, len(LABELS)) and ((answer["scores"] > 0) & (answer["scores"] < 1)).all()


def test_windows_of_a_track_score_like_the_whole_track(steps: ActionSteps, lart: LART) -> None:
    """Compare with `predict_track`, which sees a whole track at once, and AVA's mean over the rows around each second's middle."""
    hidden = range(20, 29)
    [answer] = finish(steps, job(two_people(100, hidden=hidden)))
    [red] = {int(row[0]) for row in answer["boxes"] if row[4] == 24}
    rows = answer["poses"][answer["poses"][:, 0] == red]
    pose, detected = np.zeros((100, 51), np.float32), np.zeros(100, np.float32)
    boxes = np.zeros((100, 5), np.float32)
    at = np.round(rows[:, 1] * RATE).astype(int)
    pose[at], detected[at] = rows[:, 2:], 1
    boxes[at] = answer["boxes"][answer["boxes"][:, 0] == red][:, 2:]
    tokens = ColourEyes().tokens(boxes, pose, (120, 160)) * detected[:, None]
    assert detected.sum() == 100 - len(hidden)
    track = TrackBatch(torch.from_numpy(tokens)[None, :, None], torch.from_numpy(detected)[None, :, None, None])
    scores = predict_track(lart, track, step=STEP, margin=MARGIN).actions.sigmoid()[0, :, 0].numpy()
    seconds = answer["seconds"][answer["seconds"][:, 0] == red]
    assert len(seconds) == 7
    for second, mean_scores in zip(seconds, answer["scores"][answer["seconds"][:, 0] == red], strict=True):
        key = round((second[1] + 0.5) * RATE)
        assert np.allclose(mean_scores, scores[key - 3 : min(key + 3, 100)].mean(axis=0), atol=1e-5)


def test_frames_that_grow_beyond_all_limits_are_not_decoded(steps: ActionSteps) -> None:
    """Prove it for later frames, since a gateway that accepts a video reads only the first; each would cost seconds and gigabytes."""
    [answer] = finish(steps, job(pictures([(48, 64), (480, 640), (2400, 4096), (48, 64)])))
    assert answer["counts"][COUNTS.index("decoded")] == 3


def test_tracks_end_at_a_cut(steps: ActionSteps) -> None:
    """Prove that someone who stands where another one stood in the shot before is a new person. The cut lies in the middle of a step."""
    [answer] = finish(steps, job(cut_clip(first=44, second=35)))
    boxes = answer["boxes"]
    shots = boxes[:, 1] >= 44 / RATE - 0.01
    before, after = (set(boxes[rows, 0]) for rows in (~shots, shots))
    assert (before, after) == ({1, 2}, {3, 4}) and [sum(boxes[:, 0] == number) for number in (1, 2, 3, 4)] == [44, 44, 35, 35]
    ends = {number: answer["seconds"][answer["seconds"][:, 0] == number][-1, 2] for number in (1, 2, 3, 4)}
    assert ends[1] == ends[2] == pytest.approx(44 / RATE) and ends[3] == ends[4] == pytest.approx(79 / RATE)
    assert_same(answer, finish(steps, job(cut_clip(first=44, second=35)))[0])


def test_an_answer_does_not_depend_on_other_jobs(steps: ActionSteps) -> None:
    first, second = job(two_people(50)), job(two_people(33, hidden=range(5, 10)))
    alone = [finish(steps, one)[0] for one in (first, second)]
    for answer, crowd in zip(alone, finish(steps, first, second), strict=True):
        assert_same(answer, crowd)


def test_a_step_can_be_taken_again(steps: ActionSteps) -> None:
    """Prove that earlier states stay valid, whatever was read since, as after a batch that failed."""
    video = job(two_people(40))
    [expected] = finish(steps, video)
    [state] = steps.start([video], [{}])
    with torch.inference_mode():
        states = [state]
        while not isinstance(outcome := steps.step([states[-1]], [False])[0], StepCompletion):
            states.append(outcome.state)
        for restart in (0, 2, len(states) - 1):
            state = states[restart]
            while not isinstance(outcome := steps.step([state], [False])[0], StepCompletion):
                state = outcome.state
            assert_same(expected, {name: values.numpy() for name, values in outcome.outputs.items()})


def test_step_that_fails_after_its_frames_does_not_repeat_them(steps: ActionSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LART run out of memory for a window, and take the step again."""
    video = job(two_people(40))
    [expected] = finish(steps, video)
    read, failures = ActionPipeline.read, list[str]()

    def fails_once(model: ActionPipeline, windows: Sequence[TrackWindow]) -> list[NDArray[np.float32]]:
        if not failures:
            failures.append("memory")
            raise torch.OutOfMemoryError("out of memory")
        return read(model, windows)

    monkeypatch.setattr(ActionPipeline, "read", fails_once)
    answer = finish_again(steps, video)
    assert failures
    assert_same(expected, answer)


def test_only_frames_between_start_and_end_are_processed(lart: LART) -> None:
    eyes = ColourEyes()
    steps = ActionSteps(ActionPipeline(ActionPipelineConfig(step=STEP, margin=MARGIN), eyes, lart, Clip(frames=8, stride=1, rate=RATE)))
    [answer] = finish(steps, job(two_people(90)), start_s=2.0, end_s=4.0)
    assert eyes.frames == 30
    assert sorted({*answer["boxes"][:, 1].tolist()}) == pytest.approx([row / RATE for row in range(30, 60)], abs=2e-3)
    assert sorted({*answer["seconds"][:, 1].tolist()}) == [2.0, 3.0] and answer["seconds"][:, 2].max() == 4.0


def test_tracks_are_cut_to_the_same_seconds(steps: ActionSteps) -> None:
    [answer] = finish(steps, crowd(1, [row / RATE for row in range(90)]), start_s=2.0, end_s=4.0)
    assert answer["boxes"][:, 1].tolist() == pytest.approx([row / RATE for row in range(30, 60)])
    assert answer["seconds"][:, 1:].tolist() == [[2.0, 3.0], [3.0, 4.0]]


def test_the_most_people_to_follow_are_those_of_the_best_boxes(steps: ActionSteps) -> None:
    [answer] = finish(steps, job(two_people(40)), people=1)
    assert set(answer["boxes"][:, 4]) == {30.0}  # the blue one


def test_previews_cover_their_window_only(steps: ActionSteps) -> None:
    [state] = steps.start([job(two_people(60))], [{}])
    previews = []
    with torch.inference_mode():
        while not isinstance(outcome := steps.step([state], [True])[0], StepCompletion):
            state = outcome.state
            assert outcome.preview is not None
            previews.append(outcome.preview)
    for window, preview in enumerate(previews):
        times = preview["boxes"][:, 1]
        assert ((times > (window * 8 - 0.5) / RATE) & (times < (window * 8 + 7.5) / RATE)).all()
    assert sum(len(preview["boxes"]) for preview in previews) == 120


def test_an_answer_s_tracks_say_the_same_again(steps: ActionSteps) -> None:
    [answer] = finish(steps, job(two_people(60)))
    boxes, poses = answer["boxes"], answer["poses"]
    tracks = {
        "person": torch.from_numpy(boxes[:, 0].astype(np.int32)),
        "time": torch.from_numpy(boxes[:, 1]),
        "box": torch.from_numpy(boxes[:, 2:].astype(np.float32)),
        "pose": torch.from_numpy(poses[:, 2:].astype(np.float32)),
        "token": torch.zeros(len(boxes), 0),
        "info": torch.tensor([160.0, 120.0, 0.0, 0.0, 4.0], dtype=torch.float64),
    }
    [again] = finish(steps, tracks)
    assert_same(answer, again)


def crowd(people: int, times: list[float]) -> dict[str, torch.Tensor]:
    count = people * len(times)
    return {
        "person": torch.arange(people, dtype=torch.int32).repeat_interleave(len(times)),
        "time": torch.tensor(times, dtype=torch.float64).repeat(people),
        "box": torch.tensor([[10.0, 10.0, 20.0, 40.0, 1.0]]).repeat(count, 1),
        "pose": torch.zeros(count, 0),
        "token": torch.linspace(0, 1, count).unsqueeze(1).repeat(1, 55),
        "info": torch.tensor([160.0, 120.0, 0.0, 0.0, times[-1]], dtype=torch.float64),
    }


def test_a_crowd_takes_more_steps_rather_than_longer_ones(steps: ActionSteps, lart: LART, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove that the steps of tracks of many people stay short, since other jobs wait for one step, and that the answer is the same."""
    read, seen = ActionPipeline.read, list[int]()

    def count_windows(model: ActionPipeline, windows: Any) -> Any:
        seen.append(len(windows))
        return read(model, windows)

    monkeypatch.setattr(ActionPipeline, "read", count_windows)
    [patient] = finish(steps, crowd(40, [0.0, 0.5]))
    assert seen == [16, 16, 8]
    monkeypatch.setattr("models.systems.actions.steps.WINDOWS_AT_ONCE", 1000)
    [at_once] = finish(steps, crowd(40, [0.0, 0.5]))
    assert_same(patient, at_once)


def test_steps_are_counted_while_the_last_word_takes_several(steps: ActionSteps) -> None:
    [state] = steps.start([crowd(40, [0.0, 0.5])], [{}])
    counts = []
    with torch.inference_mode():
        while True:
            counts.append((state.done, state.total))
            [outcome] = steps.step([state], [False])
            if isinstance(outcome, StepCompletion):
                break
            state = outcome.state
    assert [done for done, _ in counts] == list(range(len(counts)))
    assert all(done < total for done, total in counts) and counts[-1] == (len(counts) - 1, len(counts))


def test_a_sighting_stands_for_a_second_at_most(steps: ActionSteps) -> None:
    """Prove that nothing is assumed between two sightings that lie far apart."""
    [state] = steps.start([crowd(1, [0.0, 100.0])], [{}])
    assert [(one.row, one.rows) for one in state.source.found] == [(0, 1), (1500, 1)]


def test_tracks_with_too_few_values_are_refused(steps: ActionSteps) -> None:
    tracks = {
        "person": torch.ones(3, dtype=torch.int32),
        "time": torch.arange(3, dtype=torch.float64),
        "box": torch.ones(3, 5),
        "pose": torch.zeros(3, 0),
        "token": torch.zeros(3, 7),
        "info": torch.zeros(5, dtype=torch.float64),
    }
    with pytest.raises(InvalidInput, match="tracks: tokens of 7 values where this bundle takes 55"):
        steps.start([tracks], [{}])


def test_people_tracks_windows_and_frames_are_counted(steps: ActionSteps) -> None:
    """Process 15 of 30 frames a second, with a person who leaves before its track is confirmed and returns as a new one."""
    [answer] = finish(steps, job(two_people(120, rate=30.0, hidden=range(4, 24))), end_s=2.0)
    people, tracks, windows, frames, decoded, seconds = answer["counts"].tolist()
    assert (people, tracks, frames, seconds) == (2, 3, pytest.approx(31, abs=1), 2.0)
    assert decoded >= 2 * frames - 2 and decoded < 70
    assert windows == 2 + 2  # of 16 rows: 30 of the blue one, 19 of the red one


@pytest.mark.parametrize("people", [None, 1])
def test_results_fit_the_bytes_reserved_for_them(steps: ActionSteps, people: int | None) -> None:
    spec = BundleSpec(
        name="watcher", version="1", task="actions", architecture="actions", config={"people": 2}, labels=LABELS, license="CC0-1.0",
        clip=Clip(frames=8, stride=1, rate=RATE), weights=FileDigest(sha256="0" * 64, bytes=0),
    )  # fmt: skip
    plan = ActionsPlan(top_k=1, threshold=0.0, start_s=None, end_s=None, people=people)
    for inputs in (job(two_people(90)), crowd(40, [0.0, 0.5, 0.6]), crowd(2, [1000.0, 1030.0])):
        [answer] = finish(steps, inputs, people=people)
        bound = TASKS["actions"].result_bound(plan, spec, {name: array.numpy() for name, array in inputs.items()})
        taken = sum(array.nbytes for array in answer.values())
        assert taken <= bound <= 20 * taken + 20_000


def test_a_video_without_people_has_no_tracks(steps: ActionSteps) -> None:
    [answer] = finish(steps, job(clip(every(20, RATE))))
    assert answer["boxes"].shape == (0, 7) and answer["scores"].shape == (0, len(LABELS))


def test_a_video_that_breaks_on_the_way_is_refused(steps: ActionSteps) -> None:
    """Truncate the video after its header and first packets were read."""
    video = job(two_people(40))
    video["video"] = video["video"][: len(video["video"]) // 50]
    [state] = steps.start([video], [{}])
    with pytest.raises(InvalidInput), torch.inference_mode():
        while True:
            [outcome] = steps.step([state], [False])
            assert not isinstance(outcome, StepCompletion), "nothing was refused"
            state = outcome.state


def test_memory_does_not_grow_with_the_video(steps: ActionSteps) -> None:
    """Prove it for the tokens. Boxes, poses and sums of seconds grow, since they belong to the answer."""
    [state] = steps.start([job(two_people(120))], [{}])
    token_counts = []
    with torch.inference_mode():
        while not isinstance(outcome := steps.step([state], [False])[0], StepCompletion):
            state = outcome.state
            token_counts.append(max((len(track.tokens) for track in state.tracks), default=0))
    assert max(token_counts) <= STEP + 2 * MARGIN + 2 * 8
    assert state.tracks[0].answered > 60
