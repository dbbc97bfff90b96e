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
"""Pixels of the samples of inpainting."""
COARSE = "0.25"
"""Spacing of shapes that come soon; the starter's own is 0.1."""
LONG_SPACING = "0.05"
"""Of shapes that take long, with every cell asked: whoever looks at such a run or stops it does so long before its end."""
SAMPLE_FOV = "40"
"""Degrees, of the camera that drew the samples of shapes."""
REPEATS = 8
"""Of the sample of actions in a clip that takes long."""


def open_tab(page: Page, name: str) -> Locator:
    """Its panel, once it is there as a whole: a tab is filled when it is opened for the first time."""
    page.get_by_role("tab", name=name).click()
    panel = page.get_by_role("tabpanel", name=name)
    expect(panel.get_by_role("button", name="Run", exact=True)).to_be_visible()
    return panel


def choose(panel: Locator, *names: str) -> None:
    """Files of the samples' folder as a user's own: unlike samples on the shelf they do not run at once."""
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
    """With its hole painted."""
    panel = open_tab(page, "Inpaint")
    if picture is not None:
        panel.locator("input[type=file]").first.set_input_files(playground.SAMPLES / f"{picture}.png")
        expect(panel.locator("p.line")).to_contain_text("Paint what is to be filled")
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
    """seconds: only so much of the sample, which is quicker."""
    panel = open_tab(page, "Actions")
    if sample:
        choose(panel, "figures.mp4")
        expect(panel.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    if seconds is not None:
        panel.get_by_label("To second").fill(str(seconds))
    return panel


@cache
def long_sample() -> FilePayload:
    """The sample of actions, again and again."""
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
    """What a button lets the user keep, as a file."""
    with panel.page.expect_download() as kept:
        panel.get_by_role("button", name=name).click()
    file = folder / kept.value.suggested_filename
    kept.value.save_as(file)
    return file


def box_of(target: Locator) -> FloatRect:
    """Where it is seen, in pixels of the page."""
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    assert box is not None
    return box


def drag(target: Locator, start: tuple[float, float], end: tuple[float, float], steps: int) -> None:
    """With the mouse, from one place on it to another: pixels from its corner."""
    box, mouse = box_of(target), target.page.mouse
    mouse.move(box["x"] + start[0], box["y"] + start[1])
    mouse.down()
    mouse.move(box["x"] + end[0], box["y"] + end[1], steps=steps)
    mouse.up()


SOME_FRAMES_LATER = """async (element) => {
    await Promise.all([...element.querySelectorAll("img")].map((image) => image.decode()));
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
}"""


def seen(element: Locator) -> NDArray[np.int64]:
    """Red, green and blue, (height, width, 3), at this moment."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)


def still(element: Locator) -> NDArray[np.int64]:
    """What is seen once its images are there and it no longer changes from one look to the next, with frames drawn between them."""
    looks = [seen(element)]

    def same_again() -> bool:
        element.evaluate(SOME_FRAMES_LATER)
        looks.append(seen(element))
        return same(*looks[-2:])

    eventually(same_again, "it stands still")
    return looks[-1]


def same(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return np.array_equal(one, other)


def differs(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Share of pixels that are clearly others."""
    return float((np.abs(one - other).max(axis=2) > 20).mean())
