"""Option `detail`, which sets how small the detected people may be, and seconds whose labels are marked unsure."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from models.bundle import BundleError, BundleSpec
from models.bundle_schema import Clip
from models.loading import load
from models.systems.actions.pipeline import ActionPipeline, ActionPipelineConfig
from models.systems.actions.steps import ActionSteps
from models.systems.lart.model import LART
from opsin import Client
from opsin.actions import Second, TrackedPerson
from opsin.cli.actions import actions_table
from opsin.results import Prediction
from server.tasks.actions import ActionsOptions, ActionsPlan, ActionsTask
from server.tasks.base import FileAnswer
from tests.actions.fake_pose_estimator import ColourEyes, two_people
from tests.actions.test_route import ANSWER, FILM, ask, refusal
from tests.actions.test_steps import job
from tests.support.bundles.actions import LABELS, SMALL, write_watcher
from tests.support.bundles.vit import UNSEALED
from tests.support.gateway_process import Gateway
from tests.support.videos import clip, every

FIGURES = Path("server/playground/samples/figures.mp4")


def small_figures() -> bytes:
    """Make a video of one second: two drawn figures, about 40 pixels tall, in the middle of frames of 960 by 640."""
    frames = []
    with av.open(str(FIGURES)) as drawn:
        for frame in itertools.islice(drawn.decode(video=0), 25, 40):
            image = np.full((640, 960, 3), (206, 210, 204), np.uint8)
            image[300:374, 400:512] = frame.reformat(width=112, height=74, interpolation="AREA").to_ndarray(format="rgb24")
            frames.append(image)
    return clip(every(len(frames), 15.0), frames=frames, size=(640, 960), codec="ffv1", container="matroska", pixels="bgr0")


def test_small_people_are_detected_with_high_detail(gateway: Gateway) -> None:
    video = small_figures()
    seen = {detail: ask(gateway, video=video, detail=detail).raise_for_status().json() for detail in ("fast", "high")}
    assert [answer["detail"] for answer in seen.values()] == ["fast", "high"]
    assert seen["fast"]["people"] == []
    [box, *_] = seen["high"]["people"][0]["boxes"]
    assert 400 < box[1] < 512 and 290 < box[2] < 374  # in pixels of the video


def test_answer_has_detail_of_bundle_by_default(gateway: Gateway) -> None:
    assert ask(gateway, video=FILM).raise_for_status().json()["detail"] == "fast"
    bundle = {"config": {"detail": "standard"}}
    assert actions.plan(ActionsOptions(), spec(**bundle)).detail == "standard"
    assert actions.plan(ActionsOptions(detail="high"), spec(**bundle)).detail == "high"


def test_options_of_detection_are_refused_with_tracks(gateway: Gateway) -> None:
    assert "detail" not in ask(gateway, tracks=ANSWER).raise_for_status().json()
    for name, value in (("detail", "high"), ("people", 1)):
        field, detail = refusal(gateway, 422, tracks=ANSWER, **{name: value})
        assert field == name and "leave it out" in detail
    assert refusal(gateway, 422, video=FILM, detail="best")[0] == "detail"


def test_the_client_sends_and_returns_the_detail(gateway: Gateway) -> None:
    with Client(gateway.url, timeout=120) as client:
        assert client.actions(FILM, detail="standard").detail == "standard"
        assert client.actions(tracks=ANSWER["people"]).detail is None


@pytest.mark.parametrize(("detail", "windows"), [("fast", 4), ("standard", 8), ("high", 15)])
def test_steps_have_fewer_rows_with_higher_detail(detail: str, windows: int) -> None:
    """30 rows by 8, by 4 and by 2, of a bundle whose steps have 2 rows at its own detail, high; no step costs more frames of `fast`."""
    torch.manual_seed(0)
    config = ActionPipelineConfig(step=16, margin=14, detail="high")
    steps = ActionSteps(ActionPipeline(config, ColourEyes(), LART(SMALL).eval(), Clip(frames=2, stride=1, rate=15.0)))
    [state] = steps.start([job(two_people(30))], [{"detail": detail}])
    assert state.total == windows + 1  # the last one presents the answer
    assert steps.cost(state) <= 8


def test_stored_plans_without_detail_keep_their_meaning() -> None:
    stored = {"top_k": 1, "threshold": 0.0, "start_s": None, "end_s": None, "people": None}
    assert actions.arguments(msgspec.convert(stored, ActionsPlan), {})["detail"] == "fast"


def test_bundle_with_thresholds_of_other_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="2 thresholds for 4 labels"):
        load(write_watcher(tmp_path, config={"step": 16, "margin": 14, "thresholds": [0.5, 0.5]}))
    with pytest.raises(BundleError, match="detail"):
        load(write_watcher(tmp_path / "other", config={"step": 16, "margin": 14, "detail": "best"}))


def test_seconds_below_threshold_of_best_label_are_unsure() -> None:
    first, second, third = seconds_of(spec(config={"thresholds": [0.9, 0.2, 0.0, 0.0]}), threshold=0.5)
    assert "unsure" not in second and "unsure" not in third
    assert first["unsure"] is True and [label["label"] for label in first["labels"]] == ["stand"]  # labels stay
    assert not any("unsure" in one for one in seconds_of(spec()))
    hidden = seconds_of(spec(config={"thresholds": [0.9, 0.2, 0.0, 0.0]}), threshold=0.99)
    assert [("unsure" in one, one["labels"]) for one in hidden] == [(True, []), (False, []), (False, [])]


def test_the_annotated_clip_says_unsure() -> None:
    """Prove that a line in the person's colour is drawn behind the number and label of person 1."""
    seen = {thresholds: annotated_first_frame(spec(config={"thresholds": thresholds})) for thresholds in ((), (1.0,) * 4)}
    inked = [int(is_red(frame)[:, 20:80].sum()) for frame in seen.values()]
    assert inked[1] > inked[0] + 200


def test_a_table_shows_means_of_runs_and_what_is_unsure() -> None:
    def second(start: float, unsure: bool, **scores: float) -> Second:
        labels = tuple(Prediction(name, LABELS.index(name), score) for name, score in scores.items())
        return Second(start, start + 1, labels, unsure)

    seconds = (second(0, False, walk=0.9, jump=0.1), second(1, False, walk=0.5, jump=0.2, stand=0.1), second(2, True, walk=0.2, stand=0.1))
    person = TrackedPerson(1, 0.0, 3.0, np.zeros((0, 6)), None, seconds)
    answer: Any = SimpleNamespace(people=(person,))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(actions_table(answer))
    rows = [line.split() for line in capture.get().splitlines()[1:]]
    assert rows == [
        ["1", "0.0", "–", "2.0", "walk", "0.70,", "jump", "0.15"],
        ["1", "2.0", "–", "3.0", "unsure:", "walk", "0.20,", "stand", "0.10"],
    ]


actions = ActionsTask()


def spec(**changes: Any) -> BundleSpec:
    fields = {"name": "watcher", "version": "1", "task": "actions", "architecture": "actions", "config": {}, "labels": LABELS}
    return BundleSpec(**{**fields, "license": "CC0-1.0", "weights": UNSEALED, **changes})


def outputs() -> dict[str, NDArray[Any]]:
    """Return outputs for one person and three seconds: `stand` 0.8, `walk` 0.3, `walk` 0.4."""
    scores = np.array([[0.8, 0.3, 0, 0], [0.1, 0.3, 0, 0], [0.1, 0.4, 0, 0]], np.float32)
    return {
        "boxes": np.array([[1, second, 20.0, 20.0, 60.0, 60.0, 0.9] for second in range(3)]),
        "poses": np.zeros((0, 53)),
        "seconds": np.array([[1.0, second, second + 1] for second in range(3)]),
        "scores": scores,
        "video": np.frombuffer(GREY, np.uint8),
        "info": np.array([120.0, 160.0, 10.0, 20.0, 2.0]),
    }


def seconds_of(bundle: BundleSpec, **options: Any) -> list[dict[str, Any]]:
    answer = actions.present([outputs()], actions.plan(ActionsOptions(**options), bundle), bundle, "application/json")
    [person] = msgspec.to_builtins(answer)["people"]
    return list(person["actions"])


GREY = clip(every(20, 10.0), frames=[np.full((160, 120, 3), 120, np.uint8)] * 20, size=(160, 120))


def annotated_first_frame(bundle: BundleSpec) -> NDArray[np.uint8]:
    file = actions.present([outputs()], actions.plan(ActionsOptions(top_k=1), bundle), bundle, "video/mp4")
    assert isinstance(file, FileAnswer)
    with av.open(io.BytesIO(file.content)) as played:
        return next(played.decode(video=0)).to_ndarray(format="rgb24")


def is_red(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask of the pixels in the colour of person 1."""
    return np.asarray(np.abs(frame.astype(int) - (230, 25, 75)).max(axis=-1) < 70)
