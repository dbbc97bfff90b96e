"""The page shows nothing false: results belong to the input shown with them, and what is not known yet is marked."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, Route, expect

from server import playground
from tests.browser.pages import quiet_page
from tests.browser.tabs import (
    choose,
    long_sample,
    open_actions,
    open_classify,
    open_inpaint,
    open_tab,
    run,
    start,
    still,
)
from tests.support.serve_process import Service, frozen

pytestmark = pytest.mark.browser
STARTER = "Small starter, for trying the machinery"


def picture(width: int, height: int, name: str = "mine.png") -> FilePayload:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": file.getvalue()}


def give(panel: Locator, *files: FilePayload) -> None:
    panel.locator("input[type=file]").first.set_input_files(list(files))


def says(panel: Locator, words: str | re.Pattern[str]) -> None:
    expect(panel.locator("p.line")).to_contain_text(words)


# 1. what a model does


def test_models_state_their_purpose_and_training_data(page: Page) -> None:
    panel = open_classify(page, picture=None)
    about = panel.locator(".about")
    expect(about).to_contain_text("Drawn flags of 238 countries")
    expect(about).to_contain_text("Trained on 1,138 drawings of flags")
    expect(about.locator(".note")).to_contain_text(STARTER)
    panel.get_by_label("Model").select_option("photos@1.0.0")
    expect(about).to_contain_text("Trained on ImageNet-1k")
    expect(about).not_to_contain_text(STARTER)


def test_an_answer_repeats_what_its_model_does_not_know(page: Page) -> None:
    panel = open_classify(page)
    run(panel)
    expect(panel.get_by_role("region", name="Result").locator(".note")).to_contain_text(STARTER)
    panel.get_by_label("Model").select_option("photos@1.0.0")
    run(panel)
    expect(panel.get_by_role("region", name="Result").locator(".note")).to_have_count(0)


def test_scores_of_own_labels_say_that_drawings_are_known(page: Page) -> None:
    panel = open_tab(page, "Words")
    panel.get_by_role("button", name="Drawing: mug").click()
    note = panel.get_by_role("region", name="Result").locator(".note")
    expect(note).to_contain_text("It knows drawings")
    expect(note).to_contain_text("opsin import hf://")


def test_a_sample_selects_its_model_and_runs(page: Page) -> None:
    panel = open_tab(page, "Classify")
    panel.get_by_label("Model").select_option("photos@1.0.0")
    panel.get_by_role("button", name="Flag of Kenya").click()
    says(panel, "Done in")
    expect(panel.get_by_label("Model")).to_have_value("flags@1.0.0")
    expect(panel.locator(".bars")).to_contain_text("Kenya")


# 2. answers and errors belong to their input


def test_an_answer_to_an_earlier_input_is_dimmed_and_labelled(page: Page) -> None:
    panel = open_classify(page)
    run(panel)
    expect(panel.locator(".earlier")).to_be_hidden()
    choose(panel, "nepal.png")
    expect(panel.locator(".earlier")).to_have_text("This result belongs to an earlier input: brazil.png.")
    expect(panel.locator(".stale .bars")).to_be_visible()
    run(panel)
    expect(panel.locator(".earlier")).to_be_hidden()
    expect(panel.locator(".stale")).to_have_count(0)


def test_another_mask_is_another_input(page: Page) -> None:
    panel = open_inpaint(page)
    run(panel)
    panel.get_by_role("button", name="Invert").click()
    expect(panel.locator(".earlier")).to_contain_text("an earlier input: ladybug.png")


def test_an_error_goes_when_the_input_changes(refused: Page) -> None:
    panel = open_classify(refused, picture=None)
    cut = (playground.SAMPLES / "brazil.png").read_bytes()[:900]
    give(panel, {"name": "cut.png", "mimeType": "image/png", "buffer": cut})
    start(panel)
    error = panel.locator(".error")
    expect(error).to_contain_text("truncated")
    choose(panel, "nepal.png")
    expect(error).to_be_hidden()


def test_what_a_sample_had_set_goes_with_it(page: Page) -> None:
    panel = open_tab(page, "3D")
    panel.get_by_label("Spacing").fill("0.5")
    wide = panel.get_by_label("Field of view").last
    panel.get_by_role("button", name="A mug, with depth").click()
    expect(wide).to_have_value("40")
    says(panel, "Done in")
    give(panel, picture(64, 48))
    expect(wide).to_have_value("60")
    says(panel, "Choose the depth map of this image")


# 3. what could not be loaded


def test_a_tab_that_could_not_load_offers_to_reload(context: BrowserContext, service: Service) -> None:
    with quiet_page(context, refused=True) as page:
        page.route("**/tasks/inpaint/tab.js", lambda route: route.abort())
        page.goto(f"{service.url}/#inpaint")
        panel = page.get_by_role("tabpanel", name="Inpaint")
        expect(panel).to_contain_text("This tab could not be loaded.")
        page.unroute("**/tasks/inpaint/tab.js")
        panel.get_by_role("button", name="Reload").click()
        expect(panel.get_by_role("button", name="Run", exact=True)).to_be_visible()


def test_failed_samples_report_that_service_is_unavailable(refused: Page, context: BrowserContext) -> None:
    panel = open_tab(refused, "Classify")
    context.set_offline(True)
    try:
        panel.get_by_role("button", name="Flag of Chad").click()
        expect(panel.locator(".refusal")).to_contain_text("The gateway cannot be reached")
        says(panel, "Choose an image")
    finally:
        context.set_offline(False)


# 4. work that begins


def test_the_line_says_when_the_work_has_begun(page: Page, service: Service) -> None:
    """Hold the events back on their way to the browser, since a step may be over before the test checks it."""
    bodies = events_of(page, "**/v1/jobs/*/events")
    panel = open_inpaint(page)
    run(panel)
    names = re.findall(r"^event: (\w+)", bodies[0], re.MULTILINE)
    assert names[:2] == ["queued", "started"]

    def hold_back(route: Route) -> None:
        begun = bodies[0].index("event: started")
        route.fulfill(content_type="text/event-stream", body=bodies[0][: bodies[0].index("\n\n", begun) + 2])

    page.route("**/v1/jobs/*/events", hold_back)
    start(panel)
    says(panel, "Started")
    panel.get_by_role("button", name="Stop", exact=True).click()


def events_of(page: Page, path: str) -> list[str]:
    """Return a list to which the bodies of event streams are added when they are read."""
    bodies: list[str] = []

    def listen(route: Route) -> None:
        answer = route.fetch()
        bodies.append(answer.text())
        route.fulfill(response=answer, body=answer.body())

    page.route(path, listen, times=1)
    return bodies


# 5. what is not processed yet


def test_what_is_not_judged_yet_is_hatched(page: Page, service: Service) -> None:
    panel = open_actions(page, sample=False, seconds=None)
    give(panel, long_sample())
    start(panel)
    expect(panel.locator(".lane").first).to_be_visible()
    with frozen(service.children("worker")[0]):
        hatched = panel.locator(".lane").first.locator(".hatched")
        expect(hatched.last).to_be_visible()
        edge = hatched.last.evaluate("(hatch) => parseFloat(hatch.style.left) + parseFloat(hatch.style.width)")
        assert edge == pytest.approx(100, abs=1), "up to the end of the clip"
        panel.locator("video").evaluate("(video) => (video.currentTime = video.duration - 0.1)")
        expect(panel.locator(".now")).to_contain_text("not processed yet")
        expect(panel.locator(".now")).not_to_contain_text("nothing above the minimum score")
        panel.get_by_role("button", name="Stop", exact=True).click()
        expect(panel.locator(".now")).not_to_contain_text("yet")


def test_previews_of_inpainting_are_drawn_in_the_mask_alone(page: Page, service: Service) -> None:
    """Prove it for an image that is much larger than the network's input."""
    panel = open_tab(page, "Inpaint")
    side, (left, top, width, height) = 400, (120, 80, 60, 50)
    pixels = np.full((side, side, 3), (250, 240, 10), np.uint8)
    hole = np.zeros((side, side), np.uint8)
    hole[top : top + height, left : left + width] = 255
    files = [io.BytesIO(), io.BytesIO()]
    for file, image in zip(files, (pixels, hole), strict=True):
        Image.fromarray(image).save(file, "PNG")
    give(panel, {"name": "yellow.png", "mimeType": "image/png", "buffer": files[0].getvalue()})
    says(panel, "Paint the area to fill")
    panel.locator(".tools input[type=file]").set_input_files({"name": "hole.png", "mimeType": "image/png", "buffer": files[1].getvalue()})
    expect(panel.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    panel.get_by_label("Steps", exact=True).fill("900")
    start(panel)
    expect(panel.locator(".frames .caption")).to_contain_text("preview")
    panel.get_by_role("button", name="Stop", exact=True).click()
    says(panel, "Stopped")
    filled: list[list[int]] = panel.locator(".stage canvas").evaluate(
        "(canvas) => { const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        " const at = []; for (let i = 3; i < data.length; i += 4) if (data[i]) at.push((i - 3) / 4);"
        " const xs = at.map((i) => i % canvas.width), ys = at.map((i) => Math.floor(i / canvas.width));"
        " return [[canvas.width, canvas.height], [Math.min(...xs), Math.min(...ys)], [Math.max(...xs), Math.max(...ys)], [at.length]]; }"
    )
    assert filled == [[side, side], [left, top], [left + width - 1, top + height - 1], [width * height]]
    pixels_shown = still(panel.locator(".stage"))
    scale = pixels_shown.shape[0] / side
    corner = pixels_shown[int(scale * 300) : int(scale * 380), int(scale * 300) : int(scale * 380)]
    assert (abs(corner - [250, 240, 10]) < 8).all(), "the rest of the picture stays"


# 6. what merging gains


def test_merging_comparison_alternates_batches_and_states_gain(page: Page) -> None:
    sent: list[tuple[int, str]] = []

    def count(route: Route) -> None:
        body = route.request.post_data_buffer or b""
        sent.append((body.count(b'name="image"'), "off" if b"\r\n\r\noff\r\n" in body else "merged"))
        route.continue_()

    panel = open_classify(page)
    panel.get_by_label("Compare with merging off").check()
    page.route("**/v1/classify", count)
    run(panel)
    batches = [way for pictures, way in sent if pictures == 16]
    assert batches == ["merged", "off"] * 10
    expect(panel.locator(".compared")).to_contain_text(re.compile(r"[\d.]+× as fast in the model, 16 images at a time"))
    expect(panel.locator(".compared")).to_contain_text("medians of 10 each")
    expect(panel.locator(".compared")).to_contain_text("A single image")
