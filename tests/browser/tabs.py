"""The playground's tabs as users operate them, and their pixels. Each `open_…` returns the tab's panel."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import FilePayload, FloatRect, Locator, Page, expect

from server import playground
from tests.support.videos import clip, every
from tests.support.waiting import eventually

DRAWING_SIDE = 96
"""Side of the samples of inpainting in pixels."""
COARSE = "0.25"
"""Spacing of shapes that are computed quickly. The starter's default is 0.1."""
LONG_SPACING = "0.05"
"""Spacing of shapes that take long if every cell is computed, so that tests check or stop the run long before its end."""
SAMPLE_FOV = "40"
"""Field of view, in degrees, of the camera that rendered the samples of shapes."""
REPEATS = 8
"""Number of repetitions of the sample of actions in a clip that takes long."""


def open_tab(page: Page, name: str) -> Locator:
    """Open a tab and return its panel once it is complete: a tab is filled when it is opened for the first time."""
    page.get_by_role("tab", name=name).click()
    panel = page.get_by_role("tabpanel", name=name)
    expect(panel.get_by_role("button", name="Run", exact=True)).to_be_visible()
    return panel


def choose(panel: Locator, *names: str) -> None:
    """Choose files of the samples' folder as a user's own, which do not run at once as the offered samples do."""
    panel.locator("input[type=file]").first.set_input_files([playground.SAMPLES / name for name in names])
    for name in names:
        expect(panel).to_contain_text(name)


def open_classify(page: Page, picture: str | None = "brazil") -> Locator:
    panel = open_tab(page, "Classify")
    panel.get_by_label("Model").select_option("flags@1.0.0")
    if picture is not None:
        choose(panel, f"{picture}.png")
        expect(panel.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    return panel


def open_inpaint(page: Page, picture: str | None = "ladybug") -> Locator:
    """Open the tab and paint the hole."""
    panel = open_tab(page, "Inpaint")
    if picture is not None:
        panel.locator("input[type=file]").first.set_input_files(playground.SAMPLES / f"{picture}.png")
        expect(panel.locator("p.line")).to_contain_text("Paint the area to fill")
        panel.locator(".tools input[type=file]").set_input_files(playground.SAMPLES / f"{picture}-mask.png")
        expect(panel.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    return panel


def open_3d(page: Page, picture: str | None = "mug", spacing: str = COARSE) -> Locator:
    panel = open_tab(page, "3D")
    panel.get_by_label("Spacing").fill(spacing)
    if picture is not None:
        choose(panel, f"{picture}.png", f"{picture}-depth.png")
        panel.get_by_label("Field of view").last.fill(SAMPLE_FOV)
        expect(panel.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    return panel


def open_actions(page: Page, *, sample: bool = True, seconds: float | None = 2) -> Locator:
    """Open the tab and choose the sample, of which a run analyses only the first `seconds`."""
    panel = open_tab(page, "Actions")
    if sample:
        choose(panel, "figures.mp4")
        expect(panel.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    if seconds is not None:
        panel.get_by_label("End, in seconds").fill(str(seconds))
    return panel


@cache
def long_sample() -> FilePayload:
    """Return a clip that repeats the sample of actions."""
    with av.open(playground.SAMPLES / "figures.mp4") as sample:
        frames = [frame.to_ndarray(format="rgb24") for frame in sample.decode(video=0)] * REPEATS
    made = clip(every(len(frames), 15), size=(256, 384), frames=frames)
    return {"name": "long.mp4", "mimeType": "video/mp4", "buffer": made}


def open_status(page: Page) -> None:
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#workers")).to_contain_text("flags@1.0.0")


def start(panel: Locator) -> None:
    panel.get_by_role("button", name="Run", exact=True).click()


def run(panel: Locator) -> None:
    start(panel)
    expect(panel.locator("p.line")).to_contain_text("Done in")


def download(panel: Locator, name: str, folder: Path) -> Path:
    """Click a button that downloads a file, and return the file."""
    with panel.page.expect_download() as saved:
        panel.get_by_role("button", name=name).click()
    file = folder / saved.value.suggested_filename
    saved.value.save_as(file)
    return file


def box_of(target: Locator) -> FloatRect:
    """Return the place of an element in pixels of the page."""
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    assert box is not None
    return box


def drag(target: Locator, start: tuple[float, float], end: tuple[float, float], steps: int) -> None:
    """Drag the mouse between two places on an element, in pixels from its corner."""
    box, mouse = box_of(target), target.page.mouse
    mouse.move(box["x"] + start[0], box["y"] + start[1])
    mouse.down()
    mouse.move(box["x"] + end[0], box["y"] + end[1], steps=steps)
    mouse.up()


SOME_FRAMES_LATER = """async (element) => {
    await Promise.all([...element.querySelectorAll("img")].map((image) => image.decode()));
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
}"""


def pixels_of(element: Locator) -> NDArray[np.int64]:
    """Return the current pixels of an element: (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)


def still(element: Locator) -> NDArray[np.int64]:
    """Return the pixels of an element once its images are loaded and two screenshots, some frames apart, are equal."""
    looks = [pixels_of(element)]

    def same_again() -> bool:
        element.evaluate(SOME_FRAMES_LATER)
        looks.append(pixels_of(element))
        return same(*looks[-2:])

    eventually(same_again, "it stands still")
    return looks[-1]


def same(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return np.array_equal(one, other)


def differs(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the share of pixels that differ clearly."""
    return float((np.abs(one - other).max(axis=2) > 20).mean())
