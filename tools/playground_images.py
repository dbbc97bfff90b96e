"""The pictures of docs/playground.md and the README, of a running service with the starter bundles:
`python -m tools.playground_images http://127.0.0.1:8000 [overview] [sheets] [first-minute]`, by default all."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import BrowserContext, Locator, Page, ViewportSize, expect, sync_playwright

from tests.browser.pages import DESKTOP, PHONE, chromium
from tests.browser.tabs import box_of, drag, open_tab, run

FOLDER = Path(__file__).parents[1] / "docs" / "pictures" / "playground"
TABLET: ViewportSize = {"width": 820, "height": 900}
TALL: ViewportSize = {"width": 1360, "height": 960}
"""Size of the overview and the sequence: a result and the times below it are visible without scrolling."""
SHEET_WIDTH = 1600
GAP = 20
READING_S = 1.0
"""Pause before the next click."""
STEPS = "400"
"""Number of steps of the inpainting that is shown: with fewer it would be done too early."""
TABS = {
    "Classify": "Flag of Brazil",
    "Inpaint": "Drawing of a daisy",
    "3D": "A mug, with depth",
    "Actions": "Two drawn figures",
    "Clips and sound": "An otter on a rock, which comes nearer",
}
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
OVERVIEW: dict[str, Theme] = {"classify": "light", "inpaint": "dark", "actions": "dark", "reconstruct": "light"}
"""Which tabs, in which theme, make one picture of the playground."""


def choose(page: Page, tab: str) -> Locator:
    """Open a tab and choose its sample, which runs."""
    panel = open_tab(page, tab)
    panel.get_by_role("button", name=TABS[tab]).click()
    expect(panel.locator("p.line")).to_contain_text("Done in")
    return panel


def shot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")


def classify(page: Page) -> None:
    panel = choose(page, "Classify")
    panel.get_by_label("Compare with merging off").check()
    run(panel)
    panel.get_by_text("blended").click()


def inpaint(page: Page) -> None:
    panel = choose(page, "Inpaint")
    run(panel)


def reconstruct(page: Page) -> None:
    choose(page, "3D")


def actions(page: Page) -> None:
    look_at_both(page, choose(page, "Actions"))


def clips(page: Page) -> None:
    choose(page, "Clips and sound")


def look_at_both(page: Page, panel: Locator) -> None:
    """Choose the part in which both figures are visible and the first one does something else than walk."""
    panel.get_by_role("button", name="Person 1: ").last.click()
    page.wait_for_function("() => !document.querySelector('#panel-actions video').seeking")
    page.mouse.move(0, 0)
    panel.locator("video").evaluate("(video) => (video.controls = false)")  # they lie over the feet while they fade


def status(page: Page) -> None:
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#workers")).to_contain_text("ready")


PAGES: dict[str, Callable[[Page], None]] = {
    "classify": classify, "inpaint": inpaint, "reconstruct": reconstruct, "actions": actions, "clips": clips, "status": status
}  # fmt: skip


def open_page(page: Page, url: str, name: str, size: ViewportSize, theme: Theme) -> None:
    """Open a page and wait for its result."""
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=theme)
    page.goto(url)
    PAGES[name](page)


def overview(page: Page, url: str) -> None:
    """Save the four tabs in one image."""
    seen = []
    for name, theme in OVERVIEW.items():
        open_page(page, url, name, TALL, theme)
        seen.append(resized_shot(page, TALL))
    save(grid(seen, columns=2), "overview")


def sheets(page: Page, url: str) -> None:
    """Save each page in three sizes side by side, light and dark."""
    for name in PAGES:
        open_page(page, url, name, DESKTOP, "light")
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            save(side_by_side([resized_shot(page, size) for size in (DESKTOP, TABLET, PHONE)]), f"{name}-{theme}")


def resized_shot(page: Page, size: ViewportSize) -> Image.Image:
    page.set_viewport_size(size)
    if size["width"] < DESKTOP["width"]:
        page.evaluate("() => document.querySelector('[role=tabpanel]:not([hidden]) .result')?.scrollIntoView()")
    else:
        page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_timeout(300)  # canvases follow their frames
    return shot(page)


def first_minute(page: Page, url: str) -> None:
    """Save the screens of a visitor who tries everything, with the time since the address was entered."""
    page.set_viewport_size(TALL)
    page.emulate_media(color_scheme="light")
    seen: list[Image.Image] = []
    started_at = time.monotonic()

    @contextmanager
    def step(words: str) -> Iterator[None]:
        yield
        page.evaluate("() => scrollTo(0, 0)")
        seen.append(add_caption(shot(page), f"{time.monotonic() - started_at:.0f} s   {words}"))
        print(f"{time.monotonic() - started_at:5.1f} s  {words}", flush=True)
        time.sleep(READING_S)

    with step("The page is open. A sentence says what to do, samples lie below."):
        page.goto(url)
        page.get_by_role("button", name="Flag of Brazil").wait_for()
        page.wait_for_function("() => [...document.querySelectorAll('.samples img')].every((image) => image.naturalWidth)")
    with step("A sample is clicked: labels, and where the time went."):
        panel = choose(page, "Classify")
    with step("The slider goes back to block 2: the tokens that merged by then."):
        panel.get_by_role("slider", name="After block").fill("2")
    with step("Inpaint: a hole is painted with the brush."):
        panel = choose(page, "Inpaint")
        panel.get_by_role("button", name="Clear").click()
        paint(page, panel)
    with step("It fills step by step."):
        panel.get_by_label("Steps", exact=True).fill(STEPS)
        panel.get_by_role("button", name="Run").click()
        expect(panel.locator(".frames .caption")).to_contain_text("what the network sees")
    with step("Before and after."):
        expect(panel.locator("p.line")).to_contain_text("Done in")
        panel.get_by_role("slider", name="Before").fill("50")
    with step("3D: a picture with depth is clicked; the first levels arrive."):
        panel = open_tab(page, "3D")
        panel.get_by_role("button", name=TABS["3D"]).click()
        expect(panel.locator(".shape")).to_contain_text("points shown")
        page.wait_for_timeout(300)
    with step("The shape is whole, and turned by a drag."):
        expect(panel.locator("p.line")).to_contain_text("Done in")
        turn(page, panel)
    with step("Actions: lanes fill while the clip is watched."):
        panel = open_tab(page, "Actions")
        panel.get_by_role("button", name=TABS["Actions"]).click()
        expect(panel.locator(".segment").first).to_be_visible()
    with step("Who does what when."):
        expect(panel.locator("p.line")).to_contain_text("Done in")
        look_at_both(page, panel)
    with step("The status page has seen it all."):
        status(page)
        page.wait_for_function("() => /L\\d/.test(document.querySelector('.plot .s0').getAttribute('d'))")
    save(grid(seen, columns=2), "first-minute")


def paint(page: Page, panel: Locator) -> None:
    """Paint a stroke through the centre."""
    drag_across(panel.locator("canvas.overlay"), (0.25, 0.4), (0.7, 0.45))
    page.mouse.move(0, 0)


def turn(page: Page, panel: Locator) -> None:
    drag_across(panel.locator(".space canvas"), (0.4, 0.4), (0.54, 0.35))
    page.wait_for_timeout(300)


def drag_across(target: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag between two points, given as shares of the target's width and height."""
    box = box_of(target)
    from_, to = ((x * box["width"], y * box["height"]) for x, y in (start, end))
    drag(target, from_, to, steps=8)


def add_caption(picture: Image.Image, words: str) -> Image.Image:
    height = 56
    framed = Image.new("RGB", (picture.width, picture.height + height), "#1d1a2b")
    framed.paste(picture, (0, height))
    ImageDraw.Draw(framed).text((24, height / 2), words, "#ffffff", ImageFont.load_default(26), anchor="lm")
    return framed


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    return grid(pictures, columns=len(pictures))


def grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Arrange images row by row on a grey background."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(sum(picture.width + GAP for picture in row) for row in rows) + GAP
    heights = [max(picture.height for picture in row) + GAP for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + GAP), "#8d8a99")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + GAP
        top += height
    return sheet


def save(sheet: Image.Image, name: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    smaller = sheet.resize((SHEET_WIDTH, round(sheet.height * SHEET_WIDTH / sheet.width)), Image.Resampling.LANCZOS)
    smaller.save(FOLDER / f"{name}.webp", quality=80, method=6)


def take(context: BrowserContext, url: str, names: list[str]) -> None:
    page = context.pages[0]
    for name, take_all in (("overview", overview), ("sheets", sheets), ("first-minute", first_minute)):
        if not names or name in names:
            take_all(page, url)


if __name__ == "__main__":
    with sync_playwright() as playwright, chromium(playwright) as running:
        take(running, sys.argv[1], sys.argv[2:])
