"""Which frames of a track, and which part of them, a video network sees."""

from __future__ import annotations

import pytest

from models.people.person_clips import aspect_margins, clip_frame_indices


def test_clips_are_centred_and_stay_inside_the_track() -> None:
    assert clip_frame_indices(15, 40, frames=9, stride=1).tolist() == [11, 12, 13, 14, 15, 16, 17, 18, 20]
    assert clip_frame_indices(3, 40, frames=4, stride=3).tolist() == [0, 1, 5, 9]
    assert clip_frame_indices(38, 40, frames=4, stride=3).tolist() == [32, 36, 39, 39]


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640), (400, 400), (100, 85), (85, 100), (1920, 1080)])
def test_what_is_left_of_a_frame_is_central_and_nearly_square(width: int, height: int) -> None:
    left, top = aspect_margins(width, height)
    across, down = width - 2 * left, height - 2 * top
    pixel = 2 / min(across, down)
    assert 0.8 - pixel <= across / down <= 1.2 + pixel
    assert across * down == width * height or min(width / height, height / width) < 0.84
