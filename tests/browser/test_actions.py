"""Actions in the playground: a clip, the people over it, their lanes below it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import FilePayload, Locator, Page, expect

from server.playground.drawing import figures
from tests.service import eventually
from tests.video.clips import clip, every

pytestmark = pytest.mark.browser
RED = (230, 25, 75)
"""Of person 1."""


def open_actions(page: Page, *, sample: bool = True, seconds: float | None = 3) -> Locator:
    """seconds: only so much of the sample, which is quicker."""
    page.get_by_role("tab", name="Actions").click()
    panel = page.get_by_role("tabpanel", name="Actions")
    if sample:
        panel.get_by_role("button", name="Two drawn figures").click()
        expect(panel.get_by_role("button", name="Run")).to_be_enabled()
    if seconds is not None:
        panel.get_by_label("To second").fill(str(seconds))
    return panel


def run(panel: Locator) -> None:
    panel.get_by_role("button", name="Run").click()
    expect(panel.locator("p.line")).to_contain_text("Done in")


def shown(panel: Locator) -> NDArray[np.int64]:
    """The clip on the screen, with what is drawn over it."""
    return np.asarray(Image.open(io.BytesIO(panel.locator(".clip").screenshot())).convert("RGB")).astype(int)


def red(pixels: NDArray[np.int64]) -> float:
    """Share of pixels that are of person 1's colour."""
    return float((np.abs(pixels - RED).max(axis=2) < 40).mean())


def grey_clip(seconds: int = 2) -> FilePayload:
    return {"name": "grey.mp4", "mimeType": "video/mp4", "buffer": clip(every(10 * seconds, 10.0))}


def test_people_are_drawn_over_the_clip_and_get_lanes(page: Page) -> None:
    panel = open_actions(page)
    empty = red(shown(panel))
    run(panel)
    expect(panel.get_by_role("button", name="Person 1", exact=True)).to_be_visible()
    expect(panel.get_by_role("button", name="Person 2", exact=True)).to_be_visible()
    assert red(shown(panel)) > empty + 0.002
    panel.get_by_label("Skeletons").uncheck()
    panel.get_by_label("Boxes").uncheck()
    assert red(shown(panel)) == pytest.approx(empty, abs=0.001)


def test_a_click_in_a_lane_seeks_and_the_frame_keys_step(page: Page) -> None:
    panel = open_actions(page)
    run(panel)
    panel.get_by_label("Least score").press("Home")
    segment = panel.get_by_role("group", name="Person 2").get_by_role("button", name="Person 2: ").last
    wanted = float((segment.get_attribute("title") or "").split(", ")[1].split(" to ")[0])
    assert wanted > 0
    segment.click()
    page.wait_for_function(f"() => Math.abs(document.querySelector('#panel-actions video').currentTime - {wanted}) < 0.06")
    expect(panel.get_by_label("At this moment")).to_contain_text("Person 2: ")
    frame = 1 / figures.RATE
    for key in (".", ".", ",", "."):  # however fast they are pressed
        panel.locator("video").press(key)
    at = math.floor(wanted / frame + 1e-3) + 2.5  # of the frames, the middle of this
    page.wait_for_function(f"() => Math.abs(document.querySelector('#panel-actions video').currentTime / {frame} - {at}) < 0.01")


def test_one_person_can_be_shown_alone_and_labels_by_their_score(page: Page) -> None:
    panel = open_actions(page)
    run(panel)
    both = red(shown(panel))
    panel.get_by_role("button", name="Person 2", exact=True).click()
    expect(panel.get_by_role("button", name="Person 2", exact=True)).to_have_attribute("aria-pressed", "true")
    assert red(shown(panel)) < both
    expect(panel.get_by_label("At this moment")).not_to_contain_text("Person 1")
    panel.get_by_role("button", name="Person 2", exact=True).click()
    panel.get_by_label("Least score").press("End")
    assert panel.locator(".segment").count() == 0
    panel.get_by_label("Least score").press("Home")
    assert panel.locator(".segment").count() > 0


def test_the_answer_and_the_annotated_clip_can_be_kept(page: Page, tmp_path: Path) -> None:
    panel = open_actions(page)
    run(panel)
    with page.expect_download() as download:
        panel.get_by_role("button", name="Download JSON").click()
    download.value.save_as(tmp_path / "people.json")
    told = json.loads((tmp_path / "people.json").read_text())
    assert [person["person"] for person in told["people"]] == [1, 2]
    with page.expect_download() as download:
        panel.get_by_role("button", name="Download MP4").click()
    download.value.save_as(tmp_path / "annotated.mp4")
    with av.open(tmp_path / "annotated.mp4") as made:
        first = next(made.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert first.shape == (told["video"]["height"], told["video"]["width"], 3)
    assert red(first) > 0.002


def test_lanes_fill_while_it_runs_and_stop_keeps_them(page: Page) -> None:
    panel = open_actions(page, seconds=None)
    empty = red(shown(panel))
    panel.get_by_role("button", name="Run").click()
    expect(panel.get_by_role("button", name="Person 1", exact=True)).to_be_visible()
    expect(panel.locator("p.line")).to_contain_text("Window ")
    panel.get_by_role("button", name="Stop").click()
    expect(panel.locator("p.line")).to_contain_text("Stopped at window")
    expect(panel.get_by_role("button", name="Person 1", exact=True)).to_be_visible()
    page.wait_for_function("() => document.querySelector('#panel-actions video').currentTime > 0")
    eventually(lambda: red(shown(panel)) > empty + 0.002, "the clip shows who was seen last")
    expect(panel.get_by_role("button", name="Run")).to_be_enabled()


def test_nobody_is_said(page: Page) -> None:
    panel = open_actions(page, sample=False, seconds=None)
    expect(panel.locator("p.line")).to_have_text("Choose a clip, or the sample.")
    panel.locator("input[type=file]").set_input_files(grey_clip())
    run(panel)
    expect(panel.locator("figure .caption")).to_contain_text("Nobody was found in this clip")
    assert panel.locator(".lane").count() == 0


def test_a_clip_that_no_browser_plays_is_refused_with_the_services_words(refused: Page) -> None:
    panel = open_actions(refused, sample=False, seconds=None)
    panel.locator("input[type=file]").set_input_files({"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no video at all" * 99})
    expect(panel).to_contain_text("This browser cannot play notes.mp4")
    panel.get_by_role("button", name="Run").click()
    expect(panel.get_by_role("alert")).to_contain_text("video")
    panel.get_by_role("button", name="Two drawn figures").click()
    panel.get_by_label("To second").fill("1")
    run(panel)
    expect(panel.get_by_role("alert")).to_be_hidden()


def test_a_clip_that_the_browser_cannot_play_gets_its_lanes_all_the_same(page: Page) -> None:
    panel = open_actions(page, sample=False, seconds=None)
    film = clip(every(20, 10.0), container="avi", codec="mpeg4")
    panel.locator("input[type=file]").set_input_files({"name": "grey.avi", "mimeType": "video/x-msvideo", "buffer": film})
    expect(panel).to_contain_text("This browser cannot play grey.avi")
    run(panel)
    expect(panel.locator("figure .caption")).to_contain_text("Nobody was found in this clip")
