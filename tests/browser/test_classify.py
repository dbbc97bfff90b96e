"""Classify in the playground, as a user does it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import ROOT
from tests.service import Service, frozen

pytestmark = pytest.mark.browser
BRAZIL = ROOT / "docs" / "pictures" / "flags" / "brazil.png"


def classify(page: Page, sample: str = "Flag of Brazil") -> None:
    page.get_by_role("button", name=sample).click()
    page.get_by_role("button", name="Run").click()
    expect(page.locator("p.line")).to_contain_text("Done in")


def test_labels_are_those_of_the_api(page: Page, service: Service) -> None:
    expect(page.get_by_role("button", name="Run")).to_be_disabled()
    expect(page.locator("p.line")).to_have_text("Choose a picture, or one of the samples.")
    classify(page)
    answer = httpx.post(f"{service.url}/v1/classify", content=BRAZIL.read_bytes()).json()
    wanted = [prediction["label"] for prediction in answer["results"][0]["predictions"]]
    assert page.locator(".bars .label").all_text_contents() == wanted


def test_a_file_is_classified_too_and_its_answer_can_be_kept(page: Page, tmp_path: Path) -> None:
    page.locator("input[type=file]").set_input_files(BRAZIL)
    page.get_by_role("button", name="Run").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    download.value.save_as(tmp_path / "labels.json")
    kept = json.loads((tmp_path / "labels.json").read_text())
    assert kept["results"][0]["predictions"][0]["label"] == page.locator(".bars .label").first.text_content()
    assert kept["id"] in (page.locator(".report .id").text_content() or "")


def test_the_slider_shows_how_tokens_merge_from_block_to_block(page: Page, service: Service) -> None:
    classify(page)
    answer = httpx.post(f"{service.url}/v1/classify", params={"trace": "true"}, content=BRAZIL.read_bytes()).json()
    merging = answer["results"][0]["merging"]
    assert merging["tokens_out"] < merging["tokens_in"]
    blocks = len(merging["schedule"])
    view = page.locator(".merged")
    expect(view).to_contain_text(f"{merging['tokens_out']} of {merging['tokens_in']} tokens left after block {blocks}")
    merged = view.locator("canvas").screenshot()
    view.get_by_role("slider").press("Home")
    expect(view).to_contain_text(f"{merging['tokens_in']} tokens enter the network")
    assert view.locator("canvas").screenshot() != merged
    view.get_by_role("slider").press("End")
    view.locator("canvas").focus()
    view.locator("canvas").press("ArrowRight")
    expect(view.get_by_role("status")).to_contain_text("A token of")


def test_merging_off_stands_beside(page: Page) -> None:
    page.get_by_role("button", name="Flag of Brazil").click()
    page.get_by_label("Compare with merging off").check()
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("heading", name="Merging off")).to_be_visible()
    assert page.locator(".bars").count() == 2


def test_a_broken_picture_gets_the_services_own_words(refused: Page) -> None:
    page = refused
    page.locator("input[type=file]").set_input_files({"name": "cut.png", "mimeType": "image/png", "buffer": BRAZIL.read_bytes()[:900]})
    page.get_by_role("button", name="Run").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Corrupt image")
    expect(alert).to_contain_text("truncated")
    classify(page)
    expect(alert).to_be_hidden()


def test_a_gateway_out_of_reach_is_said(context: BrowserContext, refused: Page) -> None:
    refused.get_by_role("button", name="Flag of Brazil").click()
    expect(refused.get_by_role("button", name="Run")).to_be_enabled()
    context.set_offline(True)
    try:
        refused.get_by_role("button", name="Run").click()
        expect(refused.get_by_role("alert")).to_contain_text("cannot be reached")
    finally:
        context.set_offline(False)
    refused.get_by_role("button", name="Run").click()
    expect(refused.locator("p.line")).to_contain_text("Done in")


def test_a_slow_upload_says_how_much_was_sent(page: Page) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    devtools.send("Network.emulateNetworkConditions", slow)
    page.locator("input[type=file]").set_input_files({"name": "noise.png", "mimeType": "image/png", "buffer": encoded(noise)})
    page.get_by_role("button", name="Run").click()
    expect(page.locator("p.line")).to_contain_text(re.compile(r"Sent \d+ kB of \d+ kB"))
    expect(page.locator("p.line")).to_contain_text("Done in")


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_stop_ends_what_waits(page: Page, service: Service) -> None:
    page.get_by_role("button", name="Flag of Brazil").click()
    expect(page.get_by_role("button", name="Run")).to_be_enabled()
    with frozen(service.children("worker")[0]):
        page.keyboard.press("Control+Enter")
        expect(page.locator("p.line")).to_contain_text("in the queue")
        page.keyboard.press("Escape")
        expect(page.locator("p.line")).to_have_text("Stopped")
    classify(page)


def test_the_same_call_gives_the_same_answer(page: Page, tmp_path: Path) -> None:
    classify(page)
    page.get_by_text("The same call").click()
    code = page.get_by_role("region", name="as Python").text_content() or ""
    assert 'client.classify("brazil.png", model="flags@1.0.0"' in code
    shown = page.locator(".bars .label").first.text_content()
    printed: list[str] = []
    exec(code.replace('"brazil.png"', repr(str(BRAZIL))), {"print": lambda *words: printed.extend(map(str, words))})
    assert printed[0] == shown
