"""Clips and sound in the playground, as a user does it: with bundles of every kind, and with none."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import av
import httpx2
import numpy as np
import pytest
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, expect

from server import playground
from tests.browser.conftest import START_SECONDS
from tests.browser.pages import quiet_page
from tests.browser.tabs import differs, download, open_classify, open_tab, pixels_of, run, start, still
from tests.browser.test_calls import calls, python, shell
from tests.browser.test_pages import LOADED, MAX_BYTES
from tests.browser.test_states import can_run, is_reported, look, says
from tests.support.audio import tones, wav
from tests.support.bundles.clips import mavil, write_mavil, write_recorded
from tests.support.bundles.vit import write_tiny_vit
from tests.support.serve_process import READY, Service, frozen, serve
from tests.support.videos import clip, every
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser
SIDE = 96
RED, BLUE = [np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in ((200, 30, 30), (30, 30, 200))]
FILM: FilePayload = {
    "name": "film.mp4",
    "mimeType": "video/mp4",
    "buffer": clip(every(40, 10.0), size=(SIDE, SIDE), frames=[RED] * 20 + [BLUE] * 20, sound=True),
}
"""Four seconds, red and then blue, with a tone."""
TONES = wav(tones(4.0, 16_000, 500.0, 3000.0).astype(np.float32), 16_000)
BELL: FilePayload = {"name": "bell.wav", "mimeType": "audio/wav", "buffer": TONES}
TITLE = "Clips and sound"
IS_BLUE = """(canvas) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");  // Chromium warns of one that is read twice
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    const sum = (channel) => data.reduce((total, value, index) => total + (index % 4 === channel ? value : 0), 0);
    return sum(2) > 1.5 * sum(0);
}"""


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A network of clips that merges, one that does not, one of sound and sight together, and one of either."""
    bundles = tmp_path_factory.mktemp("bundles")
    for name in ("mae-st", "mvit2"):
        write_recorded(bundles, name)
    for name in ("both", "apart"):
        write_mavil(bundles, name)
    with serve(bundles, worker_grace=START_SECONDS) as running:
        eventually(lambda: any(map(READY.match, running.lines)), "the service is ready", START_SECONDS)
        yield running


@pytest.fixture
def clips(context: BrowserContext, listener: Service) -> Iterator[Page]:
    with quiet_page(context, refused=True) as page:
        page.goto(f"{listener.url}/#clips")
        yield page


def open_clips(page: Page, *files: FilePayload, model: str | None = None) -> Locator:
    panel = open_tab(page, TITLE)
    if files:
        panel.locator("input[type=file]").set_input_files(list(files))
        for file in files:
            expect(panel.get_by_role("list", name="Chosen files")).to_contain_text(file["name"])
    if model:
        panel.get_by_label("Model").select_option(f"{model}@1")
    return panel


def api_result(listener: Service, *files: FilePayload, **options: str) -> dict[str, object]:
    """Return the result of the same request to the API."""
    sent = {"video" if file["mimeType"].startswith("video") else "audio": (file["name"], file["buffer"]) for file in files}
    answer = httpx2.post(f"{listener.url}/v1/classify", files=sent, data=options, timeout=60)
    result: dict[str, object] = answer.raise_for_status().json()["results"][0]
    return result


def merge_in_each_block(panel: Locator, tokens: str) -> None:
    panel.get_by_label("Token merging").select_option("tokens")
    panel.get_by_label(re.compile("^Tokens to merge")).fill(tokens)


def rows(panel: Locator) -> list[list[str]]:
    """Return the cells of the table, seconds and scores."""
    return [row.locator("th, td").all_text_contents() for row in panel.locator("table tbody tr").all()]


def test_clip_has_labels_scores_over_time_and_a_matching_table(clips: Page, listener: Service, tmp_path: Path) -> None:
    panel = open_clips(clips, FILM, model="mvit2")
    panel.get_by_label("Views").fill("4")
    expect(panel.get_by_label("Token merging")).to_be_hidden()
    run(panel)
    answer = api_result(listener, FILM, model="mvit2", views="4", timeline="true")
    expect(panel.locator(".bars .label")).to_have_text([one["label"] for one in answer["predictions"]])  # type: ignore[attr-defined]
    timeline = answer["timeline"]
    assert isinstance(timeline, list)
    spans = [f"{view['start_s']:.1f} to {view['end_s']:.1f}" for view in timeline]
    assert [row[0] for row in rows(panel)] == spans
    assert [row[-1] for row in rows(panel)] == [view["predictions"][0]["label"] for view in timeline]
    expect(panel.locator(".plot-of-scores path")).to_have_count(5)
    saved = list(csv.DictReader(download(panel, "Download CSV", tmp_path).read_text().splitlines()))
    scores = [one["score"] for view in timeline for one in view["predictions"]]
    assert [float(row["score"]) for row in saved] == pytest.approx(scores, abs=1e-6)
    answer_file = json.loads(download(panel, "Download JSON", tmp_path).read_text())
    assert answer_file["results"][0]["clip"]["views"] == 4


def test_sampled_frames_are_displayed_with_remaining_tokens(clips: Page, listener: Service) -> None:
    panel = open_clips(clips, FILM, model="mae-st")
    panel.get_by_label("Views").fill("2")
    merge_in_each_block(panel, "6")
    run(panel)
    merging = api_result(listener, FILM, model="mae-st", views="2", merge="6")["merging"]
    assert isinstance(merging, dict)
    view = panel.locator(".merged")
    expect(view).to_contain_text(f"{merging['tokens_out']} of {merging['tokens_in']} tokens left after block 3")
    merged = still(view.locator("canvas"))
    assert merged[..., 0].mean() > 1.5 * merged[..., 2].mean(), "the first view is red"
    panel.get_by_label("Tokens of").select_option("1")
    eventually(lambda: view.locator("canvas").evaluate(IS_BLUE), "the second one is blue")
    later = still(view.locator("canvas"))
    view.get_by_role("slider").press("Home")
    expect(view).to_contain_text(f"{merging['tokens_in']} tokens enter the network")
    eventually(lambda: differs(pixels_of(view.locator("canvas")), later) > 0, "they have borders of their own")
    view.locator("canvas").press("ArrowRight")
    expect(view.get_by_role("status")).to_contain_text("A token of 1 patch")


def test_audio_is_drawn_before_upload_and_windows_follow(clips: Page, listener: Service) -> None:
    panel = open_clips(clips, BELL)
    strip = panel.get_by_role("img", name="The spectrogram of the sound")
    expect(panel.locator("audio")).to_be_visible()
    levels = still(strip).sum(axis=2).mean(axis=1)
    assert levels.max() > 3 * np.median(levels), "two tones are bright lines"
    expect(panel.get_by_label("Model")).to_have_value("apart@1")
    expect(panel.get_by_label("Crops")).to_be_hidden()
    panel.get_by_label("Windows").fill("3")
    merge_in_each_block(panel, "4")
    run(panel)
    answer = api_result(listener, BELL, windows="3", merge="4", timeline="true")
    expect(panel.locator(".bars .label")).to_have_text([one["label"] for one in answer["predictions"]])  # type: ignore[attr-defined]
    assert len(rows(panel)) == 3
    config = mavil("apart").config
    left = config.audio_patches + 1 - 4 * config.depth
    expect(panel.locator(".merged")).to_contain_text(f"{left} of {config.audio_patches + 1} tokens left after block {config.depth}")
    expect(panel.locator("option", has_text="Window 3, ")).to_have_count(1)


def test_a_clip_with_its_sound_is_classified_in_windows(clips: Page) -> None:
    panel = open_clips(clips, FILM, BELL, model="both")
    expect(panel.get_by_label("Views")).to_be_hidden()
    expect(panel.locator("video")).to_have_js_property("muted", True)
    panel.get_by_label("Windows").fill("2")
    merge_in_each_block(panel, "2")
    run(panel)
    expect(panel.locator(".merged h3")).to_have_text(["Tokens of the sound", "Tokens of the frames"])
    config = mavil("both").config
    for figure, patches in zip(panel.locator(".merged").all(), (config.audio_patches, config.video_patches), strict=True):
        expect(figure).to_contain_text(f"{patches + 1 - 2 * config.depth} of {patches + 1} tokens left")


def test_each_half_may_merge_and_hidden_number_is_not_sent(clips: Page) -> None:
    panel = open_clips(clips, FILM, BELL, model="both")
    merge_in_each_block(panel, "0")
    panel.get_by_label("Video tokens to merge").fill("2")
    run(panel)
    config = mavil("both").config
    for figure, patches, r in zip(panel.locator(".merged").all(), (config.audio_patches, config.video_patches), (0, 2), strict=True):
        expect(figure).to_contain_text(f"{patches + 1 - r * config.depth} of {patches + 1} tokens left")
    panel.get_by_label("Token merging").select_option("off")
    expect(panel.get_by_label("Video tokens to merge")).to_be_hidden()
    run(panel)
    total = config.audio_patches + config.video_patches + 2
    expect(panel.locator(".caption").last).to_contain_text(f"{total} of {total} tokens left")


def test_the_player_follows_the_scores_and_they_follow_it(clips: Page) -> None:
    panel = open_clips(clips, FILM, model="mvit2")
    panel.get_by_label("Views").fill("3")
    run(panel)
    plot = panel.get_by_role("group", name="Scores over time. Use the arrow keys to move from one to the next.")
    plot.focus()
    plot.press("End")
    expect(panel.locator("figure [role=status].unseen").first).to_contain_text("View 3, ")
    starts = float(rows(panel)[-1][0].split(" ")[0])
    clips.wait_for_function("(start) => Math.abs(document.querySelector('#panel-clips video').currentTime - start) < 0.1", arg=starts)
    plot.press("Home")
    expect(panel.locator("figure [role=status].unseen").first).to_contain_text("View 1, 0.0 to ")
    box = plot.bounding_box()
    assert box is not None
    plot.click(position={"x": box["width"] / 2, "y": 20})
    clips.wait_for_function("() => Math.abs(document.querySelector('#panel-clips video').currentTime - 2) < 0.1")
    clips.wait_for_function("() => Math.abs(parseFloat(document.querySelector('#panel-clips .plot-of-scores .here').style.left) - 50) < 4")


def briefly_awake(pid: int) -> None:
    """Let a frozen worker take a few of 90 steps, which it takes in less than a second."""
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.03)
    os.kill(pid, signal.SIGSTOP)


def test_views_come_one_by_one_and_a_stopped_run_keeps_them(clips: Page, listener: Service) -> None:
    panel = open_clips(clips, FILM, model="mae-st")
    panel.get_by_label("Views").fill("30")
    panel.get_by_label("Crops").select_option("3")
    worker = listener.children("worker")[0]
    with frozen(worker):
        start(panel)
        while not panel.locator(".plot-of-scores").is_visible():
            briefly_awake(worker)
            clips.wait_for_timeout(300)  # its progress is on its way to the page
        says(panel, re.compile(r"View \d+ of 90 · "))
        expect(panel).to_contain_text(re.compile(r"The mean of \d+ views? so far"))
        expect(panel.locator(".plot-of-scores .hatched")).to_be_visible()
        look(clips, "running")
        panel.get_by_role("button", name="Stop", exact=True).click()
        says(panel, "Stopped at view")
    expect(panel.locator(".plot-of-scores .hatched")).to_be_hidden()
    assert len(rows(panel)) < 30


def test_a_new_run_ends_the_one_before(clips: Page, listener: Service) -> None:
    panel = open_clips(clips, FILM, model="mae-st")
    panel.get_by_label("Views").fill("30")
    with frozen(listener.children("worker")[0]):
        with clips.expect_response("**/v1/classify") as accepted:
            start(panel)
        says(panel, "in the queue")
        with clips.expect_request(lambda request: request.method == "DELETE"):
            panel.get_by_role("button", name="Two drawn figures").click()
    says(panel, "Done in")
    state = httpx2.get(f"{listener.url}/v1/jobs/{accepted.value.json()['id']}", timeout=60).json()["state"]
    assert state == "cancelled"
    expect(panel.locator(".id")).to_contain_text("mae-st@1")


def test_a_job_is_followed_again_after_a_reload(clips: Page, listener: Service) -> None:
    panel = open_clips(clips, FILM, model="mae-st")
    panel.get_by_label("Views").fill("3")
    panel.get_by_label("Crops").select_option("1")
    clips.on("dialog", lambda dialog: dialog.accept())
    with frozen(listener.children("worker")[0]):
        start(panel)
        says(panel, "in the queue")
        clips.reload()
        expect(panel.get_by_role("list", name="Chosen files")).to_contain_text("film.mp4")
        expect(panel.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    says(panel, "Done in")
    assert len(rows(panel)) == 3
    expect(panel.get_by_label("Views")).to_have_value("3")
    expect(panel.get_by_label("Crops")).to_have_value("1")


def test_runs_that_are_not_possible_say_why(clips: Page) -> None:
    panel = open_clips(clips, BELL, model="mvit2")
    says(panel, "mvit2 classifies clips: choose a clip, or another model.")
    expect(panel.get_by_role("button", name="Run", exact=True)).to_be_disabled()
    panel.get_by_label("Model").select_option("both@1")
    says(panel, "both uses video and sound together")
    open_clips(clips, FILM, model="apart")
    says(panel, "apart classifies by sound or by video: choose one of them.")
    panel.get_by_label("Classify by").select_option("sight")
    can_run(panel)
    panel.get_by_role("button", name="Remove film.mp4").click()
    says(panel, "No clip is chosen")
    panel.get_by_role("button", name="Remove bell.wav").click()
    says(panel, re.compile("Choose a clip|Choose a sound"))


def test_the_same_call_elsewhere(clips: Page, tmp_path: Path) -> None:
    panel = open_clips(clips, FILM, BELL, model="both")
    panel.get_by_label("Windows").fill("2")
    run(panel)
    label = panel.locator(".bars .label").first.text_content() or ""
    for file in (FILM, BELL):
        (tmp_path / file["name"]).write_bytes(file["buffer"])
    called = calls(panel)
    result = json.loads(shell(called["curl"], tmp_path))["results"][0]
    assert result["predictions"][0]["label"] == label and len(result["timeline"]) == 2
    assert "timeline=True" in called["Python"] and python(called["Python"], tmp_path).startswith(label)
    answer = shell(called["Command"], tmp_path)
    assert label in answer and "Seconds" in answer


def test_every_state_is_accessible_and_fits_a_phone(clips: Page) -> None:
    panel = open_clips(clips)
    says(panel, re.compile("Choose a clip"))
    look(clips, "empty")
    open_clips(clips, FILM, BELL, model="both")
    panel.get_by_label("Windows").fill("2")
    look(clips, "chosen")
    merge_in_each_block(panel, "2")
    run(panel)
    is_reported(panel, "Download JSON", "Download CSV")
    panel.get_by_text("The scores as a table").click()
    look(clips, "done")
    panel.get_by_label("Start, in seconds").fill("9")
    start(panel)
    expect(panel.get_by_role("alert").filter(has_text="start_s")).to_be_visible()
    look(clips, "error")


def test_a_file_that_is_no_clip_and_no_sound_is_refused(clips: Page) -> None:
    panel = open_clips(clips)
    panel.locator("input[type=file]").set_input_files(playground.SAMPLES / "duck.png")
    expect(panel.locator(".refusal")).to_contain_text("duck.png is an image.")


def test_the_tab_is_light(context: BrowserContext, listener: Service) -> None:
    with quiet_page(context) as page:
        page.goto(f"{listener.url}/#clips")
        page.locator("#panel-clips .samples img").first.wait_for()
        page.wait_for_load_state("networkidle")
        loaded: dict[str, int] = page.evaluate(LOADED)
    assert sum(loaded.values()) < MAX_BYTES, loaded


def test_without_a_bundle_the_tab_says_what_to_do(context: BrowserContext, tmp_path: Path) -> None:
    write_tiny_vit(tmp_path)
    with serve(tmp_path) as running, quiet_page(context) as page:
        page.goto(f"{running.url}/#clips")
        panel = page.get_by_role("tabpanel", name=TITLE)
        expect(panel).to_contain_text("No served bundle classifies clips or sound.")
        expect(panel.locator(".command code")).to_have_text(re.compile(r"opsin import \S+ -o '\S+/mvit' --labels kinetics400.txt"))
        look(page, "no bundle")


def test_a_sound_that_another_tab_gets_is_handed_over(page: Page) -> None:
    panel = open_classify(page, picture=None)
    panel.locator("input[type=file]").set_input_files(BELL)
    expect(panel.locator(".refusal")).to_contain_text("bell.wav is a sound.")
    panel.get_by_role("button", name=f"Open it in {TITLE}").click()
    expect(page.get_by_role("tabpanel", name=TITLE)).to_be_visible()


def test_a_recording_of_no_stated_length_is_taken(clips: Page) -> None:
    """Prove it for a file like those that browsers record, whose header does not state its length."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="webm", options={"live": "1"}) as made:
        video = made.add_stream("libvpx", rate=10)
        video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
        for image in [RED] * 10:
            made.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        made.mux(video.encode(None))
    panel = open_clips(clips, {"name": "live.webm", "mimeType": "video/webm", "buffer": stream.getvalue()}, model="mae-st")
    run(panel)
    expect(panel.locator(".caption").last).to_contain_text("views of 8 frames")
