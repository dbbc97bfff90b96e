"""Clips for appearance features, which no recorded case covers: by what must hold of any of them."""

from __future__ import annotations

import numpy as np
import pytest

from models.people.lart_appearance import central_window, groups


@pytest.mark.parametrize("length", [1, 5, 6, 7, 40])
def test_every_frame_of_a_track_has_one_feature(length: int) -> None:
    made = groups(length, clip_span=16)
    assert [row for group in made for row in group.rows] == list(range(length))
    assert all(group.middle in group.rows or group.middle == group.rows.start for group in made)


def test_clips_are_centred_on_the_middle_and_never_leave_the_track() -> None:
    first, _, third, *_, last = groups(40, clip_span=8)
    assert third.middle == 15
    assert third.clip.tolist() == list(range(11, 20))
    assert first.clip.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert last.middle == 38
    assert last.clip.tolist() == [34, 35, 36, 37, 38, 39, 39, 39, 39]


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640), (400, 400), (100, 85), (85, 100), (1920, 1080)])
def test_what_is_left_of_a_frame_is_central_and_nearly_square(width: int, height: int) -> None:
    window = central_window(width, height)
    assert window.left * 2 + window.width == width
    assert window.top * 2 + window.height == height
    pixel = 2 / min(window.width, window.height)
    assert 0.8 - pixel <= window.width / window.height <= 1.2 + pixel
    box = (window.left, window.top, window.left + 10, window.top + 20)
    assert window.shifted(box) == (0, 0, 10, 20)
    assert np.isclose(window.width * window.height, width * height) or min(width / height, height / width) < 0.84
