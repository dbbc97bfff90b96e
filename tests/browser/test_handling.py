"""Files that are checked before they are sent, runs that outlive a reload, and pages for keyboards, mice and phones."""

from __future__ import annotations

import base64
import re
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Dialog, Locator, Page, Route, ViewportSize, expect

from server import playground
from tests.browser.pages import PHONE, quiet_page
from tests.browser.tabs import (
    LONG_SPACING,
    choose,
    download,
    long_sample,
    open_3d,
    open_actions,
    open_classify,
    open_inpaint,
    open_status,
    open_tab,
    run,
    start,
)
from tests.browser.test_trust import give, picture, says
from tests.support.serve_process import Service, frozen, serve
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser
LAPTOP: ViewportSize = {"width": 1024, "height": 768}
MIN_TARGET_PIXELS = 24
"""Minimum width and height of buttons and fields."""
ROW = 30
"""Minimum distance of two rows of fields in pixels."""
TARGETS = """(panel) => [...panel.querySelectorAll("button, select, a, summary, .choice span, .check, .slide, [type=number], .drop")]
    .filter((one) => one.checkVisibility())
    .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect().width, one.getBoundingClientRect().height])"""
CONTROLS = """(panel) => [...panel.querySelectorAll(".settings .field > :is(select, input)")]
    .filter((one) => one.checkVisibility())
    .map((one) => one.getBoundingClientRect().top)"""
DROP = """([names, target]) => {
    const transfer = new DataTransfer();
    for (const [name, type, bytes] of names)
        transfer.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type }));
    const where = document.querySelector(target);
    for (const kind of ["dragover", "drop"])
        where.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def sample(name: str, kind: str) -> tuple[str, str, str]:
    return name, kind, base64.b64encode((playground.SAMPLES / name).read_bytes()).decode()


def with_limits(page: Page, **limits: float) -> None:
    """Reload the page with these limits in the service's list of models."""

    def change_limits(route: Route) -> None:
        answer = route.fetch()
        document = answer.json()
        for model in document["models"]:
            for part in model["inputs"]:
                part |= {name: value for name, value in limits.items() if part[name] is not None}
        route.fulfill(response=answer, json=document)

    page.route("**/v1/models", change_limits)
    page.reload()


# 7. files


def test_a_clip_is_sent_to_the_tab_that_takes_it(page: Page) -> None:
    panel = open_classify(page)
    panel.locator("input[type=file]").first.set_input_files(playground.SAMPLES / "figures.mp4")
    expect(panel.locator(".refusal")).to_contain_text("figures.mp4 is a clip.")
    expect(panel.locator(".picture .caption").first).to_contain_text("brazil.png")
    says(panel, "Ready to run")
    panel.get_by_role("button", name="Open it in Actions").click()
    actions = page.get_by_role("tabpanel", name="Actions")
    expect(actions).to_contain_text("figures.mp4")
    expect(actions.get_by_role("button", name="Run", exact=True)).to_be_enabled()


def test_what_is_no_picture_is_refused_before_it_is_sent(page: Page) -> None:
    panel = open_classify(page, picture=None)
    give(panel, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(panel.locator(".refusal")).to_contain_text("notes.txt has an unsupported format. Choose an image.")
    expect(panel.get_by_role("button", name="Run", exact=True)).to_be_disabled()
    choose(panel, "kenya.png")
    expect(panel.locator(".refusal")).to_be_hidden()


def test_files_are_judged_by_the_limits_of_the_service(page: Page) -> None:
    with_limits(page, max_bytes=20_000, max_pixels=5_000, max_seconds=1)
    panel = open_tab(page, "Classify")
    give(panel, picture(200, 100, "large.png"))
    expect(panel.locator(".refusal")).to_contain_text("this service accepts at most 20 kB")
    small = picture(100, 60, "wide.png")
    give(panel, small)
    expect(panel.locator(".refusal")).to_contain_text("wide.png has 100 × 60 pixels; this service accepts at most 0.005 million")
    page.unroute("**/v1/models")
    with_limits(page, max_seconds=1)
    actions = open_tab(page, "Actions")
    actions.locator("input[type=file]").set_input_files(playground.SAMPLES / "figures.mp4")
    expect(actions.locator(".refusal")).to_contain_text("this service accepts at most 1 s")


def test_files_that_are_dropped_anywhere_reach_the_open_tab(page: Page) -> None:
    panel = open_classify(page, picture=None)
    page.evaluate(DROP, [[sample("chad.png", "image/png")], "header"])
    expect(panel.locator(".picture .caption").first).to_contain_text("chad.png")
    shapes = open_tab(page, "3D")
    page.evaluate(DROP, [[sample("mug.png", "image/png"), sample("mug-depth.png", "image/png")], ".result"])
    expect(shapes.get_by_role("button", name="Run", exact=True)).to_be_enabled()


def test_of_several_files_it_says_which_is_taken(page: Page) -> None:
    panel = open_classify(page, picture=None)
    page.evaluate(DROP, [[sample(f"{name}.png", "image/png") for name in ("chad", "nepal", "kenya")], "main"])
    expect(panel.get_by_text("Of 3 files, only chad.png was added.")).to_be_visible()


# 8. reload


def test_reload_prompts_during_a_run_and_job_is_followed_again(page: Page, service: Service, tmp_path: Path) -> None:
    panel = open_inpaint(page)
    panel.get_by_label("Seed", exact=True).fill("7")
    run(panel)
    usual = download(panel, "Download PNG", tmp_path).read_bytes()
    dialogs: list[str] = []

    def leave(dialog: Dialog) -> None:
        dialogs.append(dialog.type)
        dialog.accept()

    page.on("dialog", leave)
    with frozen(service.children("worker")[0]):
        start(panel)
        says(panel, "in the queue")
        page.reload()
        panel = page.get_by_role("tabpanel", name="Inpaint")
        says(panel, re.compile("Following the job again|in the queue"))
        expect(panel.locator(".tools")).to_contain_text("1,368 of 9,216 pixels will be filled")
    assert dialogs == ["beforeunload"]
    says(panel, "Done in")
    assert download(panel, "Download PNG", tmp_path).read_bytes() == usual
    page.reload()
    assert dialogs == ["beforeunload"], "nothing runs: nothing is asked"
    says(open_tab(page, "Inpaint"), "Choose an image")


def test_a_shape_is_followed_again_too(page: Page) -> None:
    panel = open_3d(page, spacing=LONG_SPACING)
    panel.get_by_label(re.compile("^Mode(?!l)")).select_option("dense")
    is_followed_again(page, panel, "Level", "mug.png; mug-depth.png")


def test_a_clip_is_followed_again_too(page: Page) -> None:
    panel = open_actions(page, sample=False, seconds=None)
    panel.locator("input[type=file]").set_input_files(long_sample())
    is_followed_again(page, panel, "Window", "long.mp4, ")


def is_followed_again(page: Page, panel: Locator, step: str, file_names: str) -> None:
    """Check that a long run goes on after a reload, with its input, until it is stopped."""
    page.on("dialog", lambda dialog: dialog.accept())
    start(panel)
    says(panel, re.compile(rf"{step} \d+ of"))
    page.reload()
    expect(panel).to_contain_text(file_names)
    says(panel, re.compile(rf"{step} \d+ of"))
    panel.get_by_role("button", name="Stop", exact=True).click()
    says(panel, "Stopped")


# 9. no bundle


def test_page_without_bundles_explains_where_to_put_them(context: BrowserContext, tmp_path: Path) -> None:
    with serve(tmp_path) as service, quiet_page(context) as page:
        eventually(
            lambda: httpx2.get(f"{service.url}/v1/models").json()["folders"] == [str(tmp_path)], "the worker has announced its folders", 300
        )
        page.goto(service.url)
        waiting = page.locator("#waiting")
        expect(waiting).to_contain_text(f"There are no bundles in {tmp_path}")
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=service.url)
        waiting.get_by_role("button", name="Copy").click()
        expect(waiting.get_by_role("button", name="Copied")).to_be_visible()
        copied: str = page.evaluate("() => navigator.clipboard.readText()")
        assert copied == f"opsin import model.safetensors -o '{tmp_path}/mine' --license LICENCE"


# 10. the status page


def test_charts_have_times_values_and_a_logarithmic_scale(page: Page) -> None:
    run(open_classify(page))
    open_status(page)
    figure = page.locator("figure.chart").filter(has_text="Latency")
    expect(figure.locator(".axis span")).to_have_count(4)
    expect(figure.locator(".axis")).to_contain_text(re.compile(r"\d{1,2}:\d\d"))
    plot, now = figure.locator(".plot"), figure.locator(".now")
    eventually(lambda: bool(figure.locator("path.s1").get_attribute("d")), "there is a line")
    at_a_moment = re.compile(r"\d{1,2}:\d\d:\d\d.*: median .+, 95 % .+")
    plot.focus()
    page.keyboard.press("ArrowLeft")
    expect(now).to_have_text(at_a_moment)
    first = now.text_content()
    page.keyboard.press("Home")
    expect(now).not_to_have_text(first or "")
    page.keyboard.press("Tab")
    expect(now).not_to_have_text(at_a_moment)
    plot.hover()
    expect(now).to_have_text(at_a_moment)
    page.mouse.move(0, 0)
    expect(figure.locator(".bottom")).to_have_text("")
    page.get_by_label("Logarithmic").check()
    expect(figure.locator(".bottom")).to_have_text(re.compile(r"m?s$"))


def test_bundles_show_latency_and_phone_tables_work_by_keyboard(page: Page) -> None:
    run(open_classify(page))
    open_status(page)
    row = page.locator("#bundles tr").filter(has_text="flags@1.0.0")
    expect(row.locator("td").nth(1)).to_have_text(re.compile(r"[\d.]+ m?s"))
    page.set_viewport_size(PHONE)
    table = page.get_by_role("group", name="Bundles, table")
    table.focus()
    expect(table).to_be_focused()
    assert table.evaluate("(one) => one.scrollWidth > one.clientWidth"), "it is wider than a phone"
    page.keyboard.press("ArrowRight")
    eventually(lambda: bool(table.evaluate("(one) => one.scrollLeft > 0")), "it scrolls")


# 11. polish


def test_durations_are_rounded_before_their_unit_is_chosen(page: Page) -> None:
    durations: list[str] = page.evaluate(
        "async () => { const { seconds } = await import(new URL('static/dom.js', document.baseURI));"
        " return [0, 0.05, 9.94, 9.96, 99.96, 999.4, 999.7, 1000, 9994, 59960].map(seconds); }"
    )
    assert durations == ["0.00 ms", "0.05 ms", "9.9 ms", "10.0 ms", "100 ms", "999 ms", "1.00 s", "1.00 s", "9.99 s", "60.0 s"]


@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_fields_are_aligned_and_targets_are_large_enough(page: Page, size: ViewportSize) -> None:
    page.set_viewport_size(size)
    for open_one in (open_classify, open_inpaint, open_3d, open_actions):
        panel = open_one(page)
        small = [name for name, width, height in panel.evaluate(TARGETS) if min(width, height) < MIN_TARGET_PIXELS]
        assert small == []
        tops: list[float] = panel.evaluate(CONTROLS)
        gaps = [later - top for top, later in pairwise(sorted(tops))]
        assert all(gap < 1 or gap > ROW for gap in gaps), "controls of one row begin at one height"


def test_phones_show_no_keyboard_shortcuts(page: Page) -> None:
    panel = open_classify(page)
    says(panel, "Ready to run (Ctrl+Enter).")
    page.set_viewport_size(PHONE)
    choose(panel, "nepal.png")
    says(panel, "Ready to run.")
    expect(panel.locator("p.line")).not_to_contain_text("Ctrl")


def test_home_and_end_go_to_the_first_and_last_tab(page: Page) -> None:
    page.get_by_role("tab", name="Classify").press("End")
    expect(page.get_by_role("tab", name="Words")).to_be_focused()
    expect(page.get_by_role("tab", name="Words")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Words").press("Home")
    expect(page.get_by_role("tab", name="Classify")).to_have_attribute("aria-selected", "true")


RECORD = """
window.fields = {};
const append = FormData.prototype.append;
FormData.prototype.append = function (name, ...value) { window.fields[name] = value[0]; return append.call(this, name, ...value); };
"""


def forget_first_sample(page: Page) -> None:
    page.add_init_script("localStorage.removeItem('first-sample')")


def test_first_page_runs_the_first_sample_at_low_priority(context: BrowserContext, service: Service) -> None:
    with quiet_page(context) as page:
        page.add_init_script("sessionStorage.visited ||= (localStorage.removeItem('first-sample'), 'yes')")
        page.add_init_script(RECORD)
        with page.expect_request("**/v1/classify"):
            page.goto(service.url)
        panel = page.locator("#panel-classify")
        expect(panel.locator("p.line")).to_contain_text("Done in")
        assert page.evaluate("window.fields")["priority"] == "low"
        expect(panel.locator(".bars .label").first).to_have_text("Brazil")
        assert "priority" not in (panel.locator("pre").first.text_content() or "")
        again: list[str] = []
        page.on("request", lambda request: again.append(request.url) if request.method == "POST" else None)
        page.reload()
        expect(page.locator("#panel-classify p.line")).to_contain_text("Choose an image")
        page.wait_for_load_state("networkidle")
        assert again == []


def test_first_page_sends_nothing_to_a_busy_service(context: BrowserContext, service: Service) -> None:
    def busy(route: Route) -> None:
        answer = route.fetch()
        entry = {"bundle": "flags@1.0.0", "priority": "normal", "waiting": 3, "running": 1, "oldest_s": 0.1}
        route.fulfill(response=answer, json={**answer.json(), "queue": [entry]})

    with quiet_page(context) as page:
        forget_first_sample(page)
        page.route("**/v1/status", busy)
        posted: list[str] = []
        page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
        with page.expect_response("**/v1/status"):
            page.goto(service.url)
        expect(page.locator("#panel-classify p.line")).to_contain_text("Choose an image")
        page.wait_for_load_state("networkidle")
        assert posted == [] and page.evaluate("localStorage.getItem('first-sample')") is None
