"""Options `timeline` and `trace` of clips and sound: the scores of each view or window, at once and as they come, and its merged tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.layers.stepwise import StepCompletion
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import ViewTrace
from models.systems.mae_st.steps import clip_steps
from models.systems.mavil.preprocessing import spectrogram
from models.systems.mavil.steps import mavil_steps
from server.tasks.classify.clips import ClassifyClipsTask
from server.tasks.classify.images import ClassifyOptions
from tests.clips.test_route import COUNT, FPS, TOLERANCE, scores_of
from tests.clips.test_sound import BELL, FILM, HOP, NOISE, RATE, ask, bank, classify, windows
from tests.support.bundles.clips import NETWORKS, frames, mavil, squares, video, view_numbers, write_mavil, write_recorded
from tests.support.gateway_process import Gateway
from tests.support.job_api import parse

CPU = torch.device("cpu")
LABELS = 7
SECOND = 1e-3
"""Resolution of the times in answers, in seconds."""


def scores_by_class(view: Any, count: int) -> list[float]:
    """Return the scores by class of a view or window with all labels."""
    assert len(view["predictions"]) == count
    assert [one["score"] for one in view["predictions"]] == sorted((one["score"] for one in view["predictions"]), reverse=True)
    return [one["score"] for one in sorted(view["predictions"], key=lambda one: one["index"])]


def count_groups(trace: Any) -> list[int]:
    """Return the number of tokens of patches after each block."""
    return [len(set(layer)) for layer in trace["layers"]]


@pytest.mark.parametrize("name", ["mae-st", "rev-mvit"])
@pytest.mark.parametrize("crops", [1, 3])
def test_each_view_has_its_scores_and_seconds(gateway: Gateway, name: str, crops: int) -> None:
    recorded = NETWORKS[name]
    model = recorded.model()
    count = int(model.config.classes)
    answer = classify(gateway, {"video": FILM}, model=name, top_k=count, views=3, crops=crops, timeline="true")
    numbers = view_numbers(COUNT, FPS, model.config.frames, 3, offset=recorded.offset)
    timeline = answer["results"][0]["timeline"]
    with torch.inference_mode():
        expected = [model(torch.stack(squares(frames(COUNT)[rows], crops))).logits.softmax(dim=-1).mean(dim=0).numpy() for rows in numbers]
    np.testing.assert_allclose([scores_by_class(view, count) for view in timeline], expected, atol=TOLERANCE)
    np.testing.assert_allclose(scores_of(answer), np.mean(expected, axis=0), atol=TOLERANCE)
    spans = [(view["start_s"], view["end_s"]) for view in timeline]
    np.testing.assert_allclose(spans, numbers[:, [0, -1]] / FPS, atol=SECOND)
    assert all(view.keys() == {"start_s", "end_s", "predictions"} for view in timeline)


def test_each_window_of_sound_has_its_scores_and_seconds(gateway: Gateway) -> None:
    answer = classify(gateway, {"audio": BELL}, top_k=LABELS, start_s=1, end_s=3.5, timeline="true")
    timeline = answer["results"][0]["timeline"]
    step = mavil("apart").config.audio_frames * HOP / RATE
    starts = 1 + step * np.arange(len(timeline))
    assert len(timeline) == answer["results"][0]["sound"]["windows"] > 2
    spans = [(view["start_s"], view["end_s"]) for view in timeline]
    np.testing.assert_allclose(spans, np.stack([starts, np.minimum(starts + step, 3.5)], axis=1), atol=SECOND)
    np.testing.assert_allclose(np.mean([scores_by_class(view, LABELS) for view in timeline], axis=0), scores_of(answer), atol=TOLERANCE)
    (first,) = classify(gateway, {"audio": BELL}, top_k=LABELS, start_s=1, end_s=1 + step, windows=1)["results"]
    (again,) = classify(gateway, {"audio": BELL}, top_k=LABELS, start_s=1, end_s=1 + step, windows=1, timeline="true")["results"]
    np.testing.assert_allclose(scores_by_class(again["timeline"][0], LABELS), scores_of({"results": [first]}), atol=TOLERANCE)


def test_window_lists_its_best_labels_and_those_of_the_mean(gateway: Gateway) -> None:
    (result,) = classify(gateway, {"audio": BELL}, top_k=1, timeline="true")["results"]
    complete = classify(gateway, {"audio": BELL}, top_k=LABELS, timeline="true")["results"][0]["timeline"]
    best = result["predictions"][0]["index"]
    for view, every in zip(result["timeline"], complete, strict=True):
        indices = [one["index"] for one in view["predictions"]]
        assert indices[0] == every["predictions"][0]["index"] and set(indices) == {indices[0], best}


def test_view_seconds_rise_at_a_low_frame_rate(gateway: Gateway) -> None:
    slow = video(12, fps=0.25)
    (result,) = classify(gateway, {"video": slow}, model="mae-st", views=3, timeline="true")["results"]
    spans = [(view["start_s"], view["end_s"]) for view in result["timeline"]]
    assert len(spans) == 3 and all(0 <= start <= end <= 44 for start, end in spans), spans
    assert any(start < end for start, end in spans), "else the order says nothing"


def test_views_of_sight_alone_are_counted_as_views(gateway: Gateway) -> None:
    def units(**sent: Any) -> set[str]:
        answer = ask(gateway, headers={"Accept": "text/event-stream"}, model="apart", **sent)
        return {event.data["unit"] for event in parse(iter(answer.text.splitlines())) if event.name == "progress" and event.data["done"]}

    assert units(files={"video": FILM}, use="sight", views=3) == {"views"}
    assert units(files={"audio": BELL}) == {"windows"}


def test_windows_come_before_the_answer(gateway: Gateway) -> None:
    sent = {"video": ("clip", FILM)}
    count = int(NETWORKS["mae-st"].model().config.classes)
    options = {"model": "mae-st", "timeline": "true", "views": "30", "top_k": str(count)}
    headers = {"Accept": "text/event-stream"}
    previews: list[Any] = []
    for _attempt in range(5):  # all windows may be seen before the stream's first look
        with gateway.http.stream("POST", "/v1/classify", files=sent, data=options, headers=headers, timeout=120) as response:
            events = list(parse(response.iter_lines()))
        if previews := [event.data for event in events if event.name == "preview"]:
            break
    timeline = events[-1].data["results"][0]["timeline"]
    assert events[-1].name == "done" and len(timeline) == 30 and previews
    few = 5
    for preview in previews:
        seen = timeline[: len(preview["timeline"])]
        assert seen
        mean = np.mean([scores_by_class(view, count) for view in seen], axis=0)
        np.testing.assert_allclose([one["score"] for one in preview["predictions"]], np.sort(mean)[::-1][:few], atol=TOLERANCE)
        for view, final in zip(preview["timeline"], seen, strict=True):
            assert (view["start_s"], view["end_s"]) == (final["start_s"], final["end_s"])
            assert view["predictions"][:1] == final["predictions"][:1] and few <= len(view["predictions"]) <= 2 * few
            assert all(label in final["predictions"] for label in view["predictions"])


def test_no_preview_is_sent_unless_requested(gateway: Gateway) -> None:
    headers = {"Accept": "text/event-stream"}
    with gateway.http.stream("POST", "/v1/classify", files={"video": FILM}, headers=headers, timeout=120) as response:
        assert "preview" not in {event.name for event in parse(response.iter_lines())}


def test_the_tokens_of_a_view_are_traced_in_its_centre(gateway: Gateway) -> None:
    model = NETWORKS["mae-st"].model()
    config, merge = model.config, 6
    (result,) = classify(gateway, {"video": FILM}, model="mae-st", views=2, crops=3, merge=merge, trace="true")["results"]
    numbers = view_numbers(COUNT, FPS, config.frames, 2, offset=True)
    centres = torch.stack([squares(frames(COUNT)[rows], 3)[1] for rows in numbers])
    with torch.inference_mode():
        traced = model(centres, merge=MergeSchedule.constant(merge), trace=True)
    expected = traced.token_owners[-1][:, config.special_tokens :] - config.special_tokens
    assert len(result["timeline"]) == 2
    for view, rows, owner in zip(result["timeline"], numbers, expected, strict=True):
        assert view["trace"]["grid"] == list(config.grid) and view["trace"]["layers"][-1] == owner.tolist()
        assert count_groups(view["trace"]) == [config.patches - merge * (block + 1) for block in range(config.depth)]
        np.testing.assert_allclose(view["frames_s"], rows / FPS, atol=SECOND)


def test_both_halves_are_traced(gateway: Gateway) -> None:
    config = mavil("both").config
    (result,) = classify(gateway, {"video": FILM, "audio": BELL}, windows=2, merge=2, merge_sight=1, trace="true")["results"]
    for view in result["timeline"]:
        for name, grid, r in (("trace", config.audio_grid, 2), ("trace_sight", config.video_grid, 1)):
            assert view[name]["grid"] == list(grid)
            assert count_groups(view[name]) == [np.prod(grid) - r * (block + 1) for block in range(config.depth)]
        assert len(view["frames_s"]) == config.frames


def test_trace_equals_published_network_and_keeps_scores(gateway: Gateway) -> None:
    model = mavil("apart")
    config = model.config
    traced, plain = (classify(gateway, {"audio": BELL}, top_k=LABELS, merge=3, **options) for options in ({"trace": "true"}, {}))
    np.testing.assert_allclose(scores_of(traced), scores_of(plain), atol=TOLERANCE)
    sounds = windows(NOISE, config.audio_frames)
    banks = torch.stack([spectrogram(one, config.audio_frames, config=bank(config.mel_bins)) for one in sounds])
    with torch.inference_mode():
        expected = model.forward_audio(banks, merge=MergeSchedule.constant(3), trace=True).audio_owners[-1][:, 1:] - 1
    assert [view["trace"]["layers"][-1] for view in traced["results"][0]["timeline"]] == expected.tolist()
    assert all("frames_s" not in view and "trace_sight" not in view for view in traced["results"][0]["timeline"])


@pytest.mark.parametrize("name", ["mae-st", "both"])
def test_bound_of_the_answer_covers_all_that_is_sent(tmp_path: Path, name: str) -> None:
    """Prove it for the outputs, the largest preview and what the gateway adds to them."""
    spec = (write_mavil if name == "both" else write_recorded)(tmp_path, name).spec
    task = ClassifyClipsTask()
    plan = task.plan(ClassifyOptions(trace=True, views=None if name == "both" else 30, merge=2), spec)
    steps = mavil_steps(mavil(name), spec, CPU) if name == "both" else clip_steps(NETWORKS[name].model(), spec, CPU)
    info = torch.tensor([64, 48, FPS, COUNT, COUNT / FPS], dtype=torch.float64)
    arrays = {"video": torch.from_numpy(np.frombuffer(FILM, np.uint8).copy()), "info": info}
    arrays |= {"sound": torch.from_numpy(np.tile(NOISE, 4))} if name == "both" else {}
    largest = 0
    with torch.inference_mode():
        (state,) = steps.start([arrays], [task.arguments(plan, {})])
        while True:
            (outcome,) = steps.step([state], [True])
            if isinstance(outcome, StepCompletion):
                break
            state = outcome.state
            largest = max(largest, sum(one.nbytes for one in (outcome.preview or {}).values()))
    echoed = 8 * (5 + 3)
    taken = sum(one.nbytes for one in outcome.outputs.values()) + largest + echoed
    assert largest > 0 and 0.5 < taken / task.result_bound(plan, spec, {}) <= 1


def test_trace_of_a_step_does_not_keep_its_batch() -> None:
    scores, groups = torch.zeros(8, LABELS), torch.zeros(8, 4, 98, dtype=torch.int32)
    trace = ViewTrace(keeps_scores=True, keeps_groups=True).after(scores[1], {"groups": groups[1]})
    assert [one.untyped_storage().nbytes() for one in (*trace.scores, *trace.groups[0].values())] == [4 * LABELS, 4 * 4 * 98]
    assert trace.nbytes == 4 * LABELS + 4 * 4 * 98


@pytest.mark.parametrize("option", ["timeline", "trace"])
def test_both_options_are_true_or_false(gateway: Gateway, option: str) -> None:
    answer = ask(gateway, {"audio": BELL}, **{option: "perhaps"})
    assert answer.status_code == 422 and answer.json()["field"] == option
