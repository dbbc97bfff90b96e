"""Views of a video beyond the recorded case (tests/golden/mae_st/sampling): the rules that it has no row for."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import pytest
import torch

from models.media.clip_sampling import (
    average_views,
    crops,
    frame_indices,
    random_box,
    random_span,
    resize_box,
    resize_short_side,
    view_spans,
)

CLIP = {"frames": 16, "stride": 4}


def test_one_view_lies_in_the_middle_and_rounds_down() -> None:
    ((start, end),) = view_spans(301, 30.0, views=1, **CLIP)
    assert (start, end) == (118.0, 181.0)


def test_steps_between_views_are_whole_only_with_offset() -> None:
    assert [start for start, _ in view_spans(300, 30.0, views=4, **CLIP)] == [0.0, 78.0, 156.0, 234.0]
    assert [start for start, _ in view_spans(300, 30.0, views=4, offset=False, **CLIP)] == [0.0, 59.0, 118.0, 177.0]


def test_clips_last_as_long_at_any_frame_rate() -> None:
    (start, end), *_ = view_spans(1000, 12.5, views=2, **CLIP)
    assert end - start + 1 == pytest.approx(64 / 30 * 12.5)
    (start, end), *_ = view_spans(1000, 12.5, views=2, rate=60.0, **CLIP)
    assert end - start + 1 == pytest.approx(64 / 60 * 12.5)


def test_a_short_video_repeats_its_last_frame() -> None:
    spans = view_spans(10, 30.0, views=7, **CLIP)
    assert set(spans) == {(0.0, 63.0)}
    assert frame_indices(spans[0], 10, 16).tolist() == [0, 4, 8, *[9] * 13]


def test_training_starts_anywhere_that_the_clip_fits() -> None:
    assert random_span(300, 30.0, draw=0.0, **CLIP) == (0.0, 63.0)
    assert random_span(300, 30.0, draw=0.5, **CLIP) == (118.0, 181.0)
    assert frame_indices(random_span(300, 30.0, draw=1.0, **CLIP), 300, 16)[-1] == 299


def test_margins_of_odd_size_are_rounded_up_and_long_sides_down() -> None:
    clip = torch.arange(51.0).expand(1, 1, 32, 51)
    left, centre, right = crops(clip, short_side=32, size=32, count=3)
    assert (left[0, 0, 0, 0], centre[0, 0, 0, 0], right[0, 0, 0, 0]) == (0, 10, 19)
    top, middle, bottom = crops(clip.transpose(2, 3), short_side=32, size=32, count=3)
    assert (
        torch.equal(middle, centre.transpose(2, 3))
        and torch.equal(bottom, right.transpose(2, 3))
        and torch.equal(top, left.transpose(2, 3))
    )
    assert resize_short_side(torch.zeros(1, 3, 45, 71), 32).shape == (1, 3, 32, 50)  # 50.49


def test_a_single_crop_is_the_centre_of_a_larger_picture() -> None:
    clip = torch.randn(3, 2, 40, 60)
    (centre,) = crops(clip, short_side=40, size=32, count=1)
    assert torch.equal(centre, clip[:, :, 4:36, 14:46])
    with pytest.raises(ValueError, match="count: 2 crops"):
        crops(clip, short_side=40, size=32, count=2)
    with pytest.raises(ValueError, match="size: squares of 48 px"):
        crops(clip, short_side=40, size=48, count=1)


def test_random_boxes_have_requested_area_and_aspect() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = [random_box(240, 320, generator) for _ in range(300)]
    assert all(box.top + box.height <= 240 and box.left + box.width <= 320 for box in boxes)
    shares = torch.tensor([box.height * box.width / (240 * 320) for box in boxes])
    assert shares.min() > 0.49 and shares.max() <= 1.0 and 0.6 < shares.mean() < 0.8
    assert all(0.74 < box.width / box.height < 1.35 for box in boxes)
    assert len({box.left for box in boxes}) > 50 and len({box.top for box in boxes}) > 30


def test_where_no_box_fits_the_largest_central_one_is_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    box = random_box(20, 400, generator)  # half the area would need an aspect of 10 at least
    assert (box.top, box.left, box.height, box.width) == (0, (400 - 27) // 2, 20, 27)
    tall = random_box(400, 21, generator)
    assert (tall.top, tall.left, tall.height, tall.width) == (186, 0, 28, 21)


def test_all_frames_are_cropped_alike() -> None:
    clip = torch.randn(3, 1, 40, 60).expand(-1, 4, -1, -1)
    part = resize_box(clip, random_box(40, 60, torch.Generator().manual_seed(1)), 16)
    assert part.shape == (3, 4, 16, 16)
    torch.testing.assert_close(part, part[:, :1].expand(-1, 4, -1, -1))


def test_views_are_averaged_after_the_softmax() -> None:
    logits = torch.tensor([[[10.0, 0.0], [0.0, 1.0]]])
    sure = 1 / (1 + math.exp(-10))
    torch.testing.assert_close(average_views(logits)[0, 0].item(), (sure + 1 / (1 + math.e)) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (77, 500), (640, 360), (40, 40), (32, 90)])
@pytest.mark.parametrize(("short_side", "size", "count"), [(36, 32, 1), (32, 32, 3)])
def test_squares_are_those_of_the_frame_resized_whole(height: int, width: int, short_side: int, size: int, count: int) -> None:
    """Positions in float32: in a line of 640 they are exact to 3e-5 of a pixel."""
    clip = torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(0))
    full = resize_short_side(clip.transpose(0, 1), short_side).transpose(0, 1)
    top, left = (math.ceil((side - size) / 2) for side in full.shape[2:])
    squares = crops(clip, short_side=short_side, size=size, count=count)
    torch.testing.assert_close(squares[count // 2], full[:, :, top : top + size, left : left + size], atol=5e-5, rtol=0)
    if count == 3:
        first = full[:, :, :, :size] if width >= height else full[:, :, :size]
        last = full[:, :, :, -size:] if width >= height else full[:, :, -size:]
        torch.testing.assert_close(squares[0], first, atol=5e-5, rtol=0)
        torch.testing.assert_close(squares[2], last, atol=5e-5, rtol=0)


@pytest.mark.parametrize("shape", [(4, 30_000), (30_000, 4)])
def test_a_strip_takes_no_more_memory_than_its_squares(shape: tuple[int, int]) -> None:
    """Resized whole it would be (224, 1,680,000), 4.5 GB: half a GiB more than the process has is enough."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    try:
        squares = crops(torch.ones(3, 1, *shape), short_side=224, size=224, count=3)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert squares.shape == (3, 3, 1, 224, 224) and torch.equal(squares, torch.ones_like(squares))
