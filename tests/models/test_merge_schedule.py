"""Merge schedules beyond the recorded ones (tests/golden/tome/matching): the token counts of ToMe's published models, and the JSON form."""

from __future__ import annotations

import pytest

from models.merge_schedule import MergeSchedule

TINY_TO_BASE, LARGE, LARGE_384 = (197, 12), (197, 24), (577, 24)
"""Tokens, the class token included, and blocks."""


@pytest.mark.parametrize(
    ("model", "schedule", "left"),
    [
        (TINY_TO_BASE, 8, 101),
        (TINY_TO_BASE, 13, 41),
        (TINY_TO_BASE, 16, 11),
        (TINY_TO_BASE, {"r": 13, "inflection": -1}, 46),
        (TINY_TO_BASE, {"r": 16, "inflection": -1}, 10),
        (LARGE, 7, 29),
        (LARGE, 8, 7),
        (LARGE, {"r": 8, "inflection": -1}, 16),
        ((257, 32), 7, 33),  # ViT-H/14
        (LARGE_384, 23, 25),
        (LARGE_384, 25, 8),
        (LARGE_384, [25] * 8, 377),
        (LARGE_384, [25] * 16, 177),
        (LARGE_384, [25] * 22, 27),
        ((577, 12), 45, 42),  # SWAG ViT-B/16 at 384 px
        ((1370, 32), 40, 90),  # SWAG ViT-H/14 at 518 px
        ((1569, 24), 65, 38),  # MAE-ST ViT-L, 16 frames
        ((513, 12), 40, 37),  # Audio-MAE ViT-B
    ],
)
def test_as_many_tokens_are_left_as_published(model: tuple[int, int], schedule: object, left: int) -> None:
    tokens, depth = model
    assert MergeSchedule.parse(schedule).token_counts(tokens, depth, protected=1)[-1] == left


def test_a_model_of_one_block_has_a_schedule() -> None:
    assert MergeSchedule.constant(5).expand(1) == (5,)
    assert MergeSchedule.linear(5, -1.0).expand(1) == (10,)


@pytest.mark.parametrize("schedule", [0, 13, [16, -1], [], {"r": 16, "inflection": -1.0}])
def test_a_schedule_survives_the_way_into_json_and_back(schedule: object) -> None:
    assert MergeSchedule.parse(schedule).to_json() == schedule


def test_a_list_is_no_pair_of_r_and_inflection() -> None:
    assert MergeSchedule.parse([16, -1]).expand(3) == (16, -1, 0)
    assert MergeSchedule.parse({"r": 16, "inflection": -1}).expand(3) == (32, 16, 0)


@pytest.mark.parametrize("schedule", ["13", 1.5, True, [1.5], {"r": 1, "depth": 2}, {"inflection": 1.0}, {"r": 4, "inflection": 2}])
def test_what_is_no_schedule_is_refused(schedule: object) -> None:
    with pytest.raises(ValueError, match=r"a merge schedule is|inflection: "):
        MergeSchedule.parse(schedule)
