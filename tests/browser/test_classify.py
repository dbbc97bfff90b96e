"""Classify in the playground, as a user does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import ROOT
from tests.browser.tabs import download, open_classify, pixels_of, run, same, still
from tests.support.serve_process import Service
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser
BRAZIL = ROOT / "docs" / "pictures" / "flags" / "brazil.png"


def test_labels_are_those_of_the_api(page: Page, service: Service) -> None:
    run(open_classify(page))
    answer = service.classify(BRAZIL.read_bytes(), model="flags").json()
    labels = [prediction["label"] for prediction in answer["results"][0]["predictions"]]
    expect(page.locator(".bars .label")).to_have_text(labels)


def test_a_file_is_classified_too_and_its_answer_can_be_kept(page: Page, tmp_path: Path) -> None:
    panel = open_classify(page, picture=None)
    panel.locator("input[type=file]").set_input_files(BRAZIL)
    run(panel)
    saved = json.loads(download(panel, "Download JSON", tmp_path).read_text())
    assert saved["results"][0]["predictions"][0]["label"] == page.locator(".bars .label").first.text_content()
    assert saved["id"] in (page.locator(".report .id").text_content() or "")


def test_the_slider_shows_how_tokens_merge_from_block_to_block(page: Page, service: Service) -> None:
    run(open_classify(page))
    answer = service.classify(BRAZIL.read_bytes(), model="flags", trace="true").json()
    merging = answer["results"][0]["merging"]
    assert merging["tokens_out"] < merging["tokens_in"]
    blocks = len(merging["schedule"])
    view = page.locator(".merged")
    expect(view).to_contain_text(f"{merging['tokens_out']} of {merging['tokens_in']} tokens left after block {blocks}")
    merged = still(view.locator("canvas"))
    view.get_by_role("slider").press("Home")
    expect(view).to_contain_text(f"{merging['tokens_in']} tokens enter the network")
    eventually(lambda: not same(pixels_of(view.locator("canvas")), merged), "the tokens that enter are shown")
    view.get_by_role("slider").press("End")
    view.locator("canvas").focus()
    view.locator("canvas").press("ArrowRight")
    expect(view.get_by_role("status")).to_contain_text("A token of")


def test_result_without_merging_is_shown_for_comparison(page: Page) -> None:
    panel = open_classify(page)
    panel.get_by_label("Compare with merging off").check()
    run(panel)
    expect(page.get_by_role("heading", name="Merging off")).to_be_visible()
    expect(page.locator(".bars")).to_have_count(2)


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_file_may_be_dropped_or_pasted(page: Page, kind: str) -> None:
    panel = open_classify(page, picture=None)
    page.evaluate(
        """async (kind) => {
            const blob = await (await fetch("static/samples/kenya.png")).blob();
            const files = new DataTransfer();
            files.items.add(new File([blob], "given.png", { type: "image/png" }));
            const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })
                                          : new ClipboardEvent("paste", { clipboardData: files, bubbles: true });
            document.querySelector("#panel-classify .picture").dispatchEvent(event);
        }""",
        kind,
    )
    expect(panel.locator(".picture .caption")).to_contain_text("given.png, 64 × 64")
    run(panel)
    expect(panel.locator(".bars .label").first).to_have_text("Kenya")
