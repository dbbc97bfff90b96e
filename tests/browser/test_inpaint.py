"""Inpaint in the playground: painting the hole, watching it fill, stopping."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import ROOT

pytestmark = pytest.mark.browser
DRAWINGS = ROOT / "docs" / "pictures" / "drawings"


def open_inpaint(page: Page, sample: str = "ladybug") -> Locator:
    page.get_by_role("tab", name="Inpaint").click()
    panel = page.get_by_role("tabpanel", name="Inpaint")
    panel.get_by_role("button", name=f"Drawing of a {sample}").click()
    expect(panel.locator(".tools")).to_contain_text("pixels will be filled")
    return panel


def run(panel: Locator, preset: str = "fast") -> None:
    panel.get_by_label("Preset").select_option(preset)
    panel.get_by_role("button", name="Run").click()


def download(page: Page, panel: Locator, name: str, folder: Path) -> NDArray[np.uint8]:
    with page.expect_download() as download:
        panel.get_by_role("button", name=name).click()
    download.value.save_as(folder / "file.png")
    with Image.open(folder / "file.png") as image:
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
    expect(panel.locator("p.line")).to_contain_text("Done in")
    filled = download(page, panel, "Download PNG", tmp_path)
    with Image.open(DRAWINGS / "ladybug.png") as image, Image.open(DRAWINGS / "ladybug-mask.png") as mask:
        before, hole = np.asarray(image.convert("RGB")), np.asarray(mask.convert("L")) >= 128
    assert (filled[~hole] == before[~hole]).all()
    assert (filled[hole] != before[hole]).any()
    assert (download(page, panel, "Download mask", tmp_path)[..., 0] >= 128).tolist() == hole.tolist()


def test_previews_come_before_the_end_and_can_be_scrubbed(page: Page) -> None:
    panel = open_inpaint(page)
    run(panel, "standard")
    expect(panel.locator(".frames .caption")).to_contain_text("what the network sees")
    expect(panel.locator("p.line")).to_contain_text("Step ")
    expect(panel.locator("p.line")).to_contain_text("Done in")
    expect(panel.locator(".frames .caption")).to_have_text("After 100 steps")
    shown = panel.locator(".frames .stage").screenshot()
    panel.get_by_label("Step", exact=True).press("Home")
    expect(panel.locator(".frames .caption")).to_contain_text("what the network sees")
    assert panel.locator(".frames .stage").screenshot() != shown
    panel.get_by_label("Step", exact=True).press("End")
    panel.get_by_label("Before").press("End")
    assert panel.locator(".frames .stage").screenshot() != shown


def test_a_painted_mask_is_the_swept_disc(page: Page, tmp_path: Path) -> None:
    panel = open_inpaint(page)
    panel.get_by_role("button", name="Clear").click()
    expect(panel.get_by_role("button", name="Run")).to_be_disabled()
    expect(panel.locator("p.line")).to_have_text("Paint what is to be filled.")
    panel.get_by_label("Actual pixels").check()
    canvas = panel.locator("canvas.overlay")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (96, 96)
    radius = int(panel.get_by_label("Brush radius").input_value())
    start, end = (20.0, 30.0), (70.0, 30.0)
    page.mouse.move(box["x"] + start[0], box["y"] + start[1])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0], box["y"] + end[1], steps=7)
    page.mouse.up()
    wanted = disc_sweep(96, start, end, radius)
    expect(panel.locator(".tools")).to_contain_text(f"{wanted.sum()} of 9,216 pixels will be filled")
    run(panel, "draft")
    mask = download(page, panel, "Download mask", tmp_path)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[..., 0] == 255).tolist() == wanted.tolist()


def test_keys_paint_and_undo(page: Page) -> None:
    panel = open_inpaint(page)
    panel.get_by_role("button", name="Clear").click()
    canvas = panel.locator("canvas.overlay")
    canvas.focus()
    canvas.press("Shift+ArrowRight")
    canvas.press("Space")
    radius = int(panel.get_by_label("Brush radius").input_value())
    disc = disc_sweep(96, (58, 48), (58, 48), radius).sum()
    expect(panel.locator(".tools")).to_contain_text(f"{disc} of 9,216")
    canvas.press("Control+z")
    expect(panel.locator(".tools")).to_contain_text("0 of 9,216")
    canvas.press("Control+Shift+z")
    expect(panel.locator(".tools")).to_contain_text(f"{disc} of 9,216")
    panel.get_by_role("button", name="Invert").click()
    expect(panel.locator(".tools")).to_contain_text(f"{9216 - disc:,} of 9,216")


def test_the_mask_lies_visibly_over_the_picture(page: Page) -> None:
    panel = open_inpaint(page)
    with_mask = Image.open(io.BytesIO(panel.locator(".layers").screenshot())).convert("RGB")
    panel.get_by_role("button", name="Clear").click()
    without = Image.open(io.BytesIO(panel.locator(".layers").screenshot())).convert("RGB")
    changed = (np.asarray(with_mask) != np.asarray(without)).any(axis=2).mean()
    with Image.open(DRAWINGS / "ladybug-mask.png") as mask:
        share = (np.asarray(mask.convert("L")) >= 128).mean()
    assert changed == pytest.approx(share, abs=0.03)  # borders fall between screen pixels


def test_stop_keeps_the_last_step(page: Page) -> None:
    panel = open_inpaint(page)
    run(panel, "full")
    expect(panel.locator(".frames .caption")).to_contain_text("what the network sees")
    panel.get_by_role("button", name="Stop").click()
    expect(panel.locator("p.line")).to_contain_text("Stopped at step")
    expect(panel.locator(".frames .caption")).to_contain_text("Stopped at step")
    expect(panel.get_by_role("button", name="Run")).to_be_enabled()


def test_too_many_steps_are_refused_and_the_mask_stays(refused: Page) -> None:
    panel = open_inpaint(refused)
    panel.get_by_label("Steps", exact=True).fill("5000")
    panel.get_by_role("button", name="Run").click()
    expect(panel.get_by_role("alert")).to_contain_text("steps")
    expect(panel.get_by_role("alert")).to_contain_text("1000")
    expect(panel.locator(".tools")).to_contain_text("1,368 of 9,216 pixels will be filled")


def test_a_seed_gives_the_same_picture_again(page: Page, tmp_path: Path) -> None:
    panel = open_inpaint(page)
    panel.get_by_label("Seed", exact=True).fill("7")
    made = []
    for _ in range(2):
        run(panel)
        expect(panel.locator("p.line")).to_contain_text("Done in")
        made.append(download(page, panel, "Download PNG", tmp_path).astype(int))
    assert np.abs(made[0] - made[1]).max() <= 2
