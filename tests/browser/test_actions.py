"""Actions in the playground: a clip, the people over it, their lanes below it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, expect

from tests.browser.pages import quiet_page
from tests.browser.tabs import download, long_sample, open_actions, pixels_of, run, start
from tests.support.serve_process import Service
from tests.support.videos import clip, every
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser
RED = (230, 25, 75)
"""Colour of person 1, which nothing in the sample has."""
SAMPLE_RATE = 15
"""Frames per second of figures.mp4."""


def red(pixels: NDArray[np.int64]) -> float:
    """Return the share of pixels in person 1's colour."""
    return float((np.abs(pixels - RED).max(axis=2) < 40).mean())


def is_drawn(panel: Locator) -> None:
    """Wait until person 1 is drawn over the clip."""
    eventually(lambda: red(pixels_of(panel.locator(".clip"))) > 0.002, "person 1 is drawn in red")


def is_not_drawn(panel: Locator) -> None:
    eventually(lambda: red(pixels_of(panel.locator(".clip"))) < 0.001, "person 1 is not drawn")


def grey_clip(seconds: int = 2) -> FilePayload:
    return {"name": "grey.mp4", "mimeType": "video/mp4", "buffer": clip(every(10 * seconds, 10.0))}


@pytest.fixture(scope="module")
def done(context: BrowserContext, service: Service) -> Iterator[Locator]:
    """The first seconds of the sample, with the people in it."""
    with quiet_page(context) as page:
        page.goto(service.url)
        panel = open_actions(page)
        is_not_drawn(panel)
        run(panel)
        yield panel


@pytest.fixture
def watched(done: Locator) -> Locator:
    """The panel in its state at the end of the run."""
    for box in ("Boxes", "Skeletons"):
        done.get_by_label(box).check()
    for alone in done.locator(".who[aria-pressed=true]").all():
        alone.click()
    done.get_by_label("Minimum score").fill("0.1")
    seek(done, 0)
    return done


def seek(panel: Locator, time: float) -> None:
    panel.locator("video").evaluate(f"(video) => (video.currentTime = {time})")
    stands_at(panel, time)


def stands_at(panel: Locator, time: float, within: float = 0.01) -> None:
    panel.page.wait_for_function(
        f"() => {{ const video = document.querySelector('#panel-actions video');"
        f" return !video.seeking && Math.abs(video.currentTime - {time}) < {within}; }}"
    )


def test_people_are_drawn_over_the_clip_and_get_lanes(watched: Locator) -> None:
    expect(watched.get_by_role("button", name="Person 1", exact=True)).to_be_visible()
    expect(watched.get_by_role("button", name="Person 2", exact=True)).to_be_visible()
    is_drawn(watched)
    watched.get_by_label("Skeletons").uncheck()
    watched.get_by_label("Boxes").uncheck()
    is_not_drawn(watched)


def test_a_click_in_a_lane_seeks_and_the_frame_keys_step(watched: Locator) -> None:
    watched.get_by_label("Minimum score").fill("0")
    segment = watched.get_by_role("group", name="Person 2").get_by_role("button", name="Person 2: ").last
    start_s = float((segment.get_attribute("title") or "").split(", ")[1].split(" to ")[0])
    assert start_s > 0
    segment.click()
    stands_at(watched, start_s, within=0.06)
    expect(watched.get_by_label("At this moment")).to_contain_text("Person 2: ")
    watched.locator("video").press(".")  # to the middle of a frame: on the border of two it would be a matter of rounding where it stands
    watched.page.wait_for_function(
        "(rate) => { const video = document.querySelector('#panel-actions video');"
        " return !video.seeking && Math.abs((video.currentTime * rate) % 1 - 0.5) < 0.1; }",
        arg=SAMPLE_RATE,
    )
    stood = watched.locator("video").evaluate("(video) => video.currentTime")
    for key in (".", ".", ",", "."):  # however fast they are pressed
        watched.locator("video").press(key)
    stands_at(watched, stood + 2 / SAMPLE_RATE)


def test_one_person_can_be_shown_alone_and_labels_by_their_score(watched: Locator) -> None:
    is_drawn(watched)
    watched.get_by_role("button", name="Person 2", exact=True).click()
    expect(watched.get_by_role("button", name="Person 2", exact=True)).to_have_attribute("aria-pressed", "true")
    is_not_drawn(watched)
    expect(watched.get_by_label("At this moment")).not_to_contain_text("Person 1")
    watched.get_by_role("button", name="Person 2", exact=True).click()
    watched.get_by_label("Minimum score").fill("1")
    expect(watched.locator(".segment")).to_have_count(0)
    watched.get_by_label("Minimum score").fill("0")
    expect(watched.locator(".segment").first).to_be_visible()


def test_the_answer_and_the_annotated_clip_can_be_kept(watched: Locator, tmp_path: Path) -> None:
    answer = json.loads(download(watched, "Download JSON", tmp_path).read_text())
    assert [person["person"] for person in answer["people"]] == [1, 2]
    with av.open(download(watched, "Download MP4", tmp_path)) as made:
        first = next(made.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert first.shape == (answer["video"]["height"], answer["video"]["width"], 3)
    assert red(first) > 0.002


def test_lanes_fill_while_it_runs_and_stop_keeps_them(page: Page) -> None:
    panel = open_actions(page, sample=False, seconds=None)
    panel.locator("input[type=file]").set_input_files(long_sample())
    start(panel)
    expect(panel.get_by_role("button", name="Person 1", exact=True)).to_be_visible()
    expect(panel.locator("p.line")).to_contain_text("Window ")
    panel.get_by_role("button", name="Stop").click()
    expect(panel.locator("p.line")).to_contain_text("Stopped at window")
    expect(panel.get_by_role("button", name="Person 1", exact=True)).to_be_visible()
    page.wait_for_function("() => document.querySelector('#panel-actions video').currentTime > 0")
    is_drawn(panel)  # the clip stops where a person was seen last
    expect(panel.get_by_role("button", name="Run")).to_be_enabled()


def test_the_page_says_if_it_finds_no_people(page: Page) -> None:
    panel = open_actions(page, sample=False, seconds=None)
    expect(panel.locator("p.line")).to_have_text("Choose a clip, or run the sample.")
    panel.locator("input[type=file]").set_input_files(grey_clip())
    run(panel)
    expect(panel.locator("figure .caption")).to_contain_text("No people were detected in this clip")
    expect(panel.locator(".lane")).to_have_count(0)


def test_clip_that_browser_cannot_play_still_gets_lanes(page: Page) -> None:
    panel = open_actions(page, sample=False, seconds=None)
    film = clip(every(20, 10.0), container="avi", codec="mpeg4")
    panel.locator("input[type=file]").set_input_files({"name": "grey.avi", "mimeType": "video/x-msvideo", "buffer": film})
    expect(panel).to_contain_text("This browser cannot play grey.avi")
    run(panel)
    expect(panel.locator("figure .caption")).to_contain_text("No people were detected in this clip")


PERSON = {
    "person": 1,
    "boxes": [[0.0, 20, 30, 40, 60, 0.9], [0.4, 60, 30, 40, 60, 0.9], [1.2, 60, 30, 40, 60, 0.9]],
    "poses": [],
    "actions": [
        {"start_s": 0, "end_s": 1, "labels": [{"label": "walk", "index": 1, "score": 0.3}], "unsure": True},
        {"start_s": 1, "end_s": 2, "labels": [{"label": "walk", "index": 1, "score": 0.9}]},
    ],
}


def test_gaps_between_detections_are_dashed_and_unsure_marked(page: Page) -> None:
    """Prove it at 0 s, where the person is detected, at 0.2 s between two detections, and at 0.8 s too far from both."""
    drawing = page.evaluate(
        """async (person) => {
            const { Clip } = await import('./static/tasks/actions/clip_player.js');
            const { labelsAt, segments } = await import('./static/tasks/actions/people.js');
            const clip = new Clip({ ontime() {}, people: () => [person], least: () => 0 });
            clip.describe({ width: 160, height: 120, duration_s: 2 });
            const leftEdge = (time, x) => {
                clip.seek(time);
                const { data } = clip.overlay.getContext('2d').getImageData(x, 40, 1, 48);
                return [...Array(48).keys()].filter((row) => data[4 * row + 3] > 100).length / 48;
            };
            const drawn = [leftEdge(0, 20), leftEdge(0.2, 40), leftEdge(0.8, 60)];
            const lanes = segments(person, 0).map(({ label, start, end }) => [label, start, end]);
            return { drawn, lanes, now: labelsAt(person, 0.5, 0).map(({ label }) => label) };
        }""",
        PERSON,
    )
    at_sighting, between, gone = drawing["drawn"]
    assert at_sighting == 1 and 0.3 < between < 0.8 and gone == 0
    assert drawing["lanes"] == [["walk, unsure", 0, 1], ["walk", 1, 2]]
    assert drawing["now"] == ["walk, unsure"]
