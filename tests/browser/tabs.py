"""The tabs of the playground as a user works them. Each `open_…` answers with the tab's panel, ready to run where it took a sample."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import FloatRect, Locator, Page, expect

DRAWING_SIDE = 96
"""Pixels of the samples of inpainting."""
COARSE = "0.25"
"""Spacing of shapes that come soon; the starter's own is 0.1."""


def open_classify(page: Page, sample: str | None = "Flag of Brazil") -> Locator:
    page.get_by_role("tab", name="Classify").click()
    panel = page.get_by_role("tabpanel", name="Classify")
    if sample is not None:
        panel.get_by_role("button", name=sample).click()
        expect(panel.get_by_role("button", name="Run")).to_be_enabled()
    return panel


def open_inpaint(page: Page, sample: str | None = "ladybug") -> Locator:
    page.get_by_role("tab", name="Inpaint").click()
    panel = page.get_by_role("tabpanel", name="Inpaint")
    if sample is not None:
        panel.get_by_role("button", name=f"Drawing of a {sample}").click()
        expect(panel.locator(".tools")).to_contain_text("pixels will be filled")
    return panel


def open_3d(page: Page, sample: str | None = "mug", spacing: str = COARSE) -> Locator:
    page.get_by_role("tab", name="3D").click()
    panel = page.get_by_role("tabpanel", name="3D")
    panel.get_by_label("Spacing").fill(spacing)
    if sample is not None:
        panel.get_by_role("button", name=f"A {sample}, with depth").click()
        expect(panel.get_by_role("button", name="Run")).to_be_enabled()
    return panel


def open_actions(page: Page, *, sample: bool = True, seconds: float | None = 2) -> Locator:
    """seconds: only so much of the sample, which is quicker."""
    page.get_by_role("tab", name="Actions").click()
    panel = page.get_by_role("tabpanel", name="Actions")
    if sample:
        panel.get_by_role("button", name="Two drawn figures").click()
        expect(panel.get_by_role("button", name="Run")).to_be_enabled()
    if seconds is not None:
        panel.get_by_label("To second").fill(str(seconds))
    return panel


def open_status(page: Page) -> None:
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#workers")).to_contain_text("flags@1.0.0")


def start(panel: Locator) -> None:
    panel.get_by_role("button", name="Run").click()


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
