"""Points in space as a notebook shows them, in a real browser."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, expect

from opsin.display import PAGE, render_points
from tests.browser.pages import quiet_page
from tests.browser.tabs import drag, pixels_of, same, still
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser


def test_points_are_seen_and_turn_with_a_drag(context: BrowserContext) -> None:
    points = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    colours = np.tile(np.array([[200, 30, 30]], np.uint8), (2000, 1))
    with quiet_page(context) as page:
        page.set_content(PAGE.format(render_points(points, colours, "2,000 points")))
        frame = page.locator("iframe")
        canvas = page.frame_locator("iframe").locator("canvas")
        canvas.wait_for()
        page.wait_for_function("() => document.readyState === 'complete'")
        eventually(lambda: (pixels_of(canvas) == [200, 30, 30]).all(axis=2).sum() > 1000, "the points are drawn")
        before = still(frame)
        drag(frame, (100, 100), (200, 120), steps=4)
        eventually(lambda: not same(pixels_of(frame), before), "the drag has turned them")
        expect(page.get_by_text("2,000 points")).to_be_visible()
