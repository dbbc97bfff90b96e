"""Inpaint in the playground: painting the hole, watching it fill, stopping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import ROOT
from tests.browser.tabs import DRAWING_SIDE, box_of, download, drag, open_inpaint, pixels_of, run, same, start, still
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser
DRAWINGS = ROOT / "docs" / "pictures" / "drawings"


def pixels(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def disc_sweep(size: int, start: tuple[float, float], end: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    """Pixels whose centre is at most `radius` from the segment. (size, size)"""
    y, x = np.mgrid[:size, :size] + 0.5
    (x0, y0), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    swept: NDArray[np.bool_] = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2 <= radius * radius
    return swept


def test_the_hole_is_filled_and_the_rest_is_the_pictures(page: Page, tmp_path: Path) -> None:
    panel = open_inpaint(page)
    run(panel)
    filled = pixels(download(panel, "Download PNG", tmp_path))
    with Image.open(DRAWINGS / "ladybug.png") as image, Image.open(DRAWINGS / "ladybug-mask.png") as mask:
        before, hole = np.asarray(image.convert("RGB")), np.asarray(mask.convert("L")) >= 128
    assert (filled[~hole] == before[~hole]).all()
    assert (filled[hole] != before[hole]).any()
    assert (pixels(download(panel, "Download mask", tmp_path))[..., 0] >= 128).tolist() == hole.tolist()


def test_previews_come_before_the_end_and_can_be_scrubbed(page: Page) -> None:
    panel = open_inpaint(page)
    panel.get_by_label("Preset").select_option("standard")
    panel.get_by_label("Steps", exact=True).fill("400")
    start(panel)
    expect(panel.locator(".frames .caption")).to_contain_text("preview")
    expect(panel.locator("p.line")).to_contain_text("Done in")
    caption, stage, time = panel.locator(".frames .caption"), panel.locator(".frames .stage"), panel.get_by_role("slider", name="Step")
    expect(caption).to_have_text("After 400 steps")
    final_frame = still(stage)
    time.press("Home")
    expect(caption).to_contain_text("preview")
    eventually(lambda: not same(pixels_of(stage), final_frame), "an earlier step is shown")
    time.press("End")
    expect(caption).to_have_text("After 400 steps")
    eventually(lambda: same(pixels_of(stage), final_frame), "the last step is shown again")


CELLS = 48
"""A side of what is compared in coarse: where pixels of the picture begin on the screen, browsers round one way or the other."""


def coarse(pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Means of squares. (CELLS, CELLS, 3)"""
    screen = Image.fromarray(pixels.astype(np.uint8))
    return np.asarray(screen.resize((CELLS, CELLS), Image.Resampling.BOX)).astype(int)


def other_columns(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.intp]:
    return (np.abs(one - other).max(axis=2) > 40).any(axis=0).nonzero()[0]


def test_before_and_after_are_compared_by_a_slider(page: Page) -> None:
    panel = open_inpaint(page)
    run(panel)
    with Image.open(DRAWINGS / "ladybug-mask.png") as mask:
        hole = (np.asarray(mask.convert("L").resize((CELLS, CELLS), Image.Resampling.BOX)) > 0).any(axis=0).nonzero()[0]
    stage, slider = panel.locator(".frames .stage"), panel.get_by_role("slider", name="Before")
    after = coarse(still(stage))
    slider.press("End")
    eventually(lambda: other_columns(coarse(pixels_of(stage)), after).size, "the picture before is shown")
    before = coarse(still(stage))
    changed = other_columns(before, after)
    assert hole.min() <= changed.min() < changed.max() <= hole.max()
    middle = int(hole.mean())
    slider.fill(str(round(100 * middle / CELLS)))
    eventually(lambda: other_columns(coarse(pixels_of(stage)), before).size, "the picture after is shown beside it")
    half = coarse(still(stage))
    assert other_columns(half, after).max() <= middle
    assert other_columns(half, before).min() >= middle - 1


def test_a_painted_mask_is_the_swept_disc(page: Page, tmp_path: Path) -> None:
    panel = open_inpaint(page)
    panel.get_by_role("button", name="Clear").click()
    expect(panel.get_by_role("button", name="Run")).to_be_disabled()
    expect(panel.locator("p.line")).to_have_text("Paint the area to fill.")
    panel.get_by_label("Actual size").check()
    canvas = panel.locator("canvas.overlay")
    box = box_of(canvas)
    assert (box["width"], box["height"]) == (DRAWING_SIDE, DRAWING_SIDE)
    radius = int(panel.get_by_label("Brush radius").input_value())
    start, end = (20.0, 30.0), (70.0, 30.0)
    drag(canvas, start, end, steps=7)
    expected = disc_sweep(DRAWING_SIDE, start, end, radius)
    expect(panel.locator(".tools")).to_contain_text(f"{expected.sum()} of 9,216 pixels will be filled")
    panel.get_by_label("Preset").select_option("draft")
    run(panel)
    mask = pixels(download(panel, "Download mask", tmp_path))
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[..., 0] == 255).tolist() == expected.tolist()


def test_keys_paint_and_undo(page: Page) -> None:
    panel = open_inpaint(page)
    panel.get_by_role("button", name="Clear").click()
    canvas = panel.locator("canvas.overlay")
    canvas.focus()
    canvas.press("Shift+ArrowRight")
    canvas.press("Space")
    radius = int(panel.get_by_label("Brush radius").input_value())
    disc = disc_sweep(DRAWING_SIDE, (58, 48), (58, 48), radius).sum()
    expect(panel.locator(".tools")).to_contain_text(f"{disc} of 9,216")
    canvas.press("Control+z")
    expect(panel.locator(".tools")).to_contain_text("0 of 9,216")
    canvas.press("Control+Shift+z")
    expect(panel.locator(".tools")).to_contain_text(f"{disc} of 9,216")
    panel.get_by_role("button", name="Invert").click()
    expect(panel.locator(".tools")).to_contain_text(f"{9216 - disc:,} of 9,216")


def test_the_mask_lies_visibly_over_the_picture(page: Page) -> None:
    panel = open_inpaint(page)
    layers = panel.locator(".layers")
    with_mask = still(layers)
    panel.get_by_role("button", name="Clear").click()
    eventually(lambda: not same(pixels_of(layers), with_mask), "the mask is gone")
    changed = (still(layers) != with_mask).any(axis=2).mean()
    with Image.open(DRAWINGS / "ladybug-mask.png") as mask:
        share = (np.asarray(mask.convert("L")) >= 128).mean()
    assert changed == pytest.approx(share, abs=0.03)  # borders fall between screen pixels


def test_a_seed_gives_the_same_picture_again(page: Page, tmp_path: Path) -> None:
    panel = open_inpaint(page)
    panel.get_by_label("Seed", exact=True).fill("7")
    made = []
    for _ in range(2):
        run(panel)
        made.append(pixels(download(panel, "Download PNG", tmp_path)).astype(int))
    assert np.abs(made[0] - made[1]).max() <= 2
