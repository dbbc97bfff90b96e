"""AVA's metric beyond its recorded case (tests/golden/lart/ava_eval): against a slow reading of its rules, and by what must hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from models.people.ava import CLASS_NAMES, EVALUATED_CLASSES
from training.evaluation.ava import Boxes, ScoredTrack, average_precision, evaluate, main, read_answers, read_boxes, score_rows


def scored_track(**changes: object) -> ScoredTrack:
    random = np.random.default_rng(0)
    values = ScoredTrack(
        name="ava-val_a_b-c_d_e_f_000120_3_20",
        frame_names=(*(f"{frame:06d}.jpg" for frame in range(112, 128)), *["-1"] * 4),
        logits=random.normal(size=(20, 60)),
        detected=np.ones(20, bool),
        boxes=np.tile([10.0, 20.0, 30.0, 40.0], (20, 1)),
        confidences=np.full(20, 0.9),
        sizes=np.tile([100.0, 200.0], (20, 1)),
    )
    return replace(values, **changes)


def test_a_track_gives_a_row_for_each_class_at_its_key_frame() -> None:
    rows = score_rows([scored_track()], "track.fullframe@")
    assert set(rows.videos) == {"a_b-c_d_e_f"}
    assert set(rows.seconds.tolist()) == {904}
    assert tuple(rows.classes.tolist()) == EVALUATED_CLASSES == tuple(CLASS_NAMES)
    assert np.allclose(rows.corners, [0.05, 0.2, 0.2, 0.6])
    assert np.allclose(rows.scores, 1 / (1 + np.exp(-scored_track().logits[8])))


@pytest.mark.parametrize(("frame", "first", "end"), [(120, 2, 14), (113, 0, 7), (127, 9, 16)])
def test_scores_are_averaged_around_key_frame_without_padding(frame: int, first: int, end: int) -> None:
    track = scored_track(name=f"ava-val_abcdefghijk_{frame:06d}_3_20")
    rows = score_rows([track])
    assert np.allclose(rows.scores, (1 / (1 + np.exp(-track.logits[first:end]))).mean(axis=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"detected": np.zeros(20, bool)},
        {"confidences": np.full(20, 0.79)},
        {"name": "ava-val_abcdefghijk_000300_3_20"},
        {"name": "ava-val_abcdefghijk_000030_3_20", "frame_names": ("000030.jpg",) * 20},
        {"name": "ava-val_abcdefghijk_026970_3_20", "frame_names": ("026970.jpg",) * 20},
    ],
    ids=["not detected", "not sure", "no key frame", "too early", "too late"],
)
def test_tracks_that_do_not_count_give_no_rows(changes: dict[str, object]) -> None:
    assert len(score_rows([scored_track(**changes)]).scores) == 0


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="neither"):
        score_rows([scored_track()], "track.fullframe@max.3")


def boxes(random: np.random.Generator, frames: int, people: int, classes: int, *, scored: bool) -> Boxes:
    count = frames * people * classes
    corners = np.repeat(random.uniform(0, 0.5, size=(frames * people, 2)), classes, axis=0)
    corners = np.hstack([corners, corners + 0.4])
    return Boxes(
        videos=tuple(f"video{frame % 3}" for frame in range(frames) for _ in range(people * classes)),
        seconds=np.repeat(np.arange(frames) + 902, people * classes),
        corners=corners,
        classes=np.tile(np.array(EVALUATED_CLASSES[:classes]), frames * people),
        scores=random.permutation(count) / count if scored else np.ones(count),
    )


def random_case(seed: int) -> tuple[Boxes, Boxes]:
    """Crowded, so that people compete for true boxes and the bound of 50 rows a frame is met; some frames are only on one side."""
    random = np.random.default_rng(seed)
    predictions = boxes(random, frames=8, people=9, classes=7, scored=True)
    truth = boxes(random, frames=7, people=6, classes=7, scored=False)
    retained = random.uniform(size=len(truth.scores)) < 0.4
    retained &= truth.classes != EVALUATED_CLASSES[3]
    rows = np.flatnonzero(retained)
    return predictions, Boxes(
        tuple(truth.videos[row] for row in rows), truth.seconds[rows], truth.corners[rows], truth.classes[rows], truth.scores[rows]
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(width, 0) * max(height, 0)
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def hits_by_the_rules(predictions: Boxes, truth: Boxes, number: int) -> Iterator[tuple[float, bool]]:
    """Count hits one frame at a time, one box at a time."""
    for key in set(zip(truth.videos, truth.seconds.tolist(), strict=True)):
        rows = [row for row, video in enumerate(predictions.videos) if (video, predictions.seconds[row]) == key]
        rows = sorted(rows, key=lambda row: -predictions.scores[row])[:50]
        true = [row for row, video in enumerate(truth.videos) if (video, truth.seconds[row]) == key and truth.classes[row] == number]
        taken = set()
        for row in (row for row in rows if predictions.classes[row] == number):
            overlaps = [overlap(predictions.corners[row], truth.corners[other]) for other in true]
            best = int(np.argmax(overlaps)) if overlaps else -1
            hit = best >= 0 and overlaps[best] >= 0.5 and best not in taken
            taken |= {best} if hit else set()
            yield float(predictions.scores[row]), hit


@pytest.mark.parametrize("seed", range(4))
def test_all_boxes_at_once_are_the_boxes_one_by_one(seed: int) -> None:
    predictions, truth = random_case(seed)
    result = evaluate(predictions, truth, EVALUATED_CLASSES[:7])
    expected = []
    for place, number in enumerate(EVALUATED_CLASSES[:7]):
        count = int((truth.classes == number).sum())
        if not count:
            assert np.isnan(result.average_precision[place])
            continue
        hits = [hit for _, hit in sorted(hits_by_the_rules(predictions, truth, number), key=lambda scored: -scored[0])]
        assert 0 < sum(hits) < len(hits)
        recall, precision, area = np.cumsum(hits) / count, np.cumsum(hits) / np.arange(1, len(hits) + 1), 0.0
        for step in range(len(hits)):
            area += (recall[step] - (recall[step - 1] if step else 0)) * precision[step:].max()
        expected.append(area)
        assert result.average_precision[place] == pytest.approx(area, abs=1e-12)
    assert result.mean == pytest.approx(np.mean(expected), abs=1e-12)


def test_average_precision_equals_scikit_learn() -> None:
    hits = np.array([True, True, False, True, False, False])
    scores = np.arange(6, 0, -1)
    stepped = average_precision(hits, int(hits.sum()))
    assert stepped == pytest.approx(average_precision_score(hits, scores))
    assert average_precision(hits, 6) == pytest.approx(stepped / 2)


def test_perfect_predictions_score_one_and_none_scores_zero() -> None:
    truth = boxes(np.random.default_rng(0), frames=4, people=2, classes=5, scored=False)
    assert evaluate(truth, truth, EVALUATED_CLASSES[:5]).mean == 1.0
    nothing = Boxes((), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
    assert evaluate(nothing, truth, EVALUATED_CLASSES[:5]).mean == 0.0


@pytest.mark.parametrize(("frames", "precision"), [((903, 902), 1.0), ((902, 903), 0.5)])
def test_equal_scores_keep_the_order_of_the_file(frames: tuple[int, int], precision: float) -> None:
    """The order is independent of that of the frames in the ground truth."""
    truth = Boxes(("v",) * 2, np.array([902, 903]), np.array([[0.6, 0.6, 0.9, 0.9], [0.1, 0.1, 0.5, 0.5]]), np.array([2, 1]), np.ones(2))
    predictions = Boxes(("v",) * 2, np.array(frames), np.tile([0.1, 0.1, 0.5, 0.5], (2, 1)), np.ones(2, np.int64), np.full(2, 0.7))
    assert evaluate(predictions, truth).mean == precision


def test_unevaluated_classes_count_only_for_their_frame() -> None:
    """A frame with no other boxes is in the ground truth all the same: what is found there is wrong."""
    truth = boxes(np.random.default_rng(0), frames=2, people=1, classes=1, scored=False)
    with_unscored = replace(truth, classes=np.array([EVALUATED_CLASSES[0], 2]))
    assert 2 not in EVALUATED_CLASSES
    alone = evaluate(replace(truth, scores=np.array([0.4, 0.6])), with_unscored)
    assert alone.average_precision[0] == 0.5
    assert np.isnan(alone.average_precision[1:]).all()
    assert alone.mean == 0.5


def test_boxes_are_read_with_scores_or_without(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("film,0902,0.1,0.2,0.3,0.4,12,0.5\n\nfilm,903,0.2,0.3,0.4,0.5,80\n")
    read = read_boxes(tmp_path / "boxes.csv")
    assert read.videos == ("film", "film")
    assert (read.seconds.tolist(), read.classes.tolist(), read.scores.tolist()) == ([902, 903], [12, 80], [0.5, 1.0])
    assert read.corners.tolist() == [[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]]
    (tmp_path / "boxes.csv").write_text("video,902,0.1,0.2\n")
    with pytest.raises(ValueError, match="7 values"):
        read_boxes(tmp_path / "boxes.csv")


def answer(*people: dict[str, object]) -> dict[str, object]:
    """Return an answer of `POST /v1/actions`."""
    video = {"width": 200, "height": 100, "fps": 30.0, "frames": 150, "duration_s": 5.0}
    return {"id": "req_1", "model": "m", "version": "1", "video": video, "people": list(people), "timing": {}}


def person(number: int, left: float, label: str, score: float) -> dict[str, object]:
    """Seen for three seconds, and doing one thing."""
    boxes = [[time / 10, left, 20.0, 40.0, 60.0, 0.9] for time in range(30)]
    labels = [{"label": label, "index": 0, "score": score}]
    actions = [{"start_s": float(second), "end_s": float(second + 1), "labels": labels} for second in range(3)]
    return {"person": number, "first_s": 0.0, "last_s": 2.9, "boxes": boxes, "actions": actions}


def truth(folder: Path, *rows: tuple[str, int, float, int]) -> Path:
    """AVA's file of boxes that begin at `left`, in parts of the picture."""
    file = folder / "truth.csv"
    file.write_text("".join(f"{video},{second:04d},{left},0.2,{left + 0.2},0.8,{number}\n" for video, second, left, number in rows))
    return file


def test_answers_of_the_service_are_measured_by_avas_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The person predicted to walk with the higher score does not; the one predicted to stand does."""
    (tmp_path / "answers").mkdir()
    people = (person(1, 20.0, "walk", 0.8), person(2, 100.0, "walk", 0.9), person(3, 150.0, "stand", 0.7))
    (tmp_path / "answers/film.json").write_text(json.dumps(answer(*people)))
    csv = truth(tmp_path, ("film", 902, 0.1, 14), ("film", 902, 0.75, 12))
    assert main([str(tmp_path / "answers"), str(csv)]) == 0
    lines = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert {name.strip(): float(value) for name, value in lines} == {"stand": 100.0, "walk": 50.0, "frame mAP": 75.0}
    boxes = read_answers(tmp_path / "answers")
    assert sorted(set(boxes.seconds.tolist())) == [900, 901, 902]
    np.testing.assert_allclose(boxes.corners[0], [0.1, 0.2, 0.3, 0.8])


def test_people_who_are_not_observed_at_a_key_frame_are_left_out(tmp_path: Path) -> None:
    gone = person(1, 20.0, "walk", 0.9)
    gone["boxes"] = [[1.0, 20.0, 20.0, 40.0, 60.0, 0.9]]
    (tmp_path / "film.json").write_text(json.dumps(answer(gone)))
    assert read_answers(tmp_path, first_second=0).seconds.tolist() == [1]
    assert len(read_answers(tmp_path, least_confidence=0.95).seconds) == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"film\.json"),
        ("{}", r"film\.json: not a response of /v1/actions"),
        (json.dumps(answer(person(1, 20.0, "fly", 0.9))), r"film\.json: people\.actions\.labels: fly is not a class of AVA"),
    ],
    ids=["no JSON", "another answer", "another class"],
)
def test_unmeasurable_answer_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, sentence: str) -> None:
    (tmp_path / "film.json").write_text(content)
    assert main([str(tmp_path), str(truth(tmp_path, ("film", 902, 0.1, 14)))]) == 2
    assert re.search(sentence, capsys.readouterr().err)
