"""Words in the playground: labels of the user's own, and pictures sorted by a sentence or a picture, with and without a pair."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, Request, expect

from server import playground
from tests.browser.conftest import START_SECONDS
from tests.browser.pages import quiet_page
from tests.browser.tabs import download, open_tab
from tests.browser.test_calls import calls, python, shell
from tests.browser.test_pages import LOADED, MAX_BYTES
from tests.browser.test_states import look
from tests.browser.test_trust import picture, says
from tests.support.bundles.image_text import write_tiny_pair
from tests.support.bundles.vit import write_tiny_encoder, write_tiny_vit
from tests.support.serve_process import READY, Service, frozen, serve
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser
TEMPLATES = ["a photo of the {}", "{}"]
DRAWINGS = ["daisy.png", "duck.png", "mug.png", "umbrella.png"]
TARGET = 24
"""Least pixels of what is clicked."""


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A pair with random weights that reads some words, and an encoder of images."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_pair(bundles, templates=TEMPLATES)
    write_tiny_encoder(bundles)
    with serve(bundles, worker_grace=START_SECONDS) as running:
        eventually(lambda: any(map(READY.match, running.lines)), "the service is ready", START_SECONDS)
        yield running


@pytest.fixture
def words(context: BrowserContext, speaker: Service) -> Iterator[Page]:
    with quiet_page(context, refused=True) as page:
        page.goto(f"{speaker.url}/#words")
        yield page


def open_mode(page: Page, mode: str) -> Locator:
    open_tab(page, "Words")
    page.get_by_role("group", name="Mode").get_by_text(mode, exact=True).click()
    return page.get_by_role("tabpanel", name="Words").get_by_role("region", name=mode, exact=True)


def open_labels(page: Page, *labels: str, image: str | None = "mug.png") -> Locator:
    panel = open_mode(page, "Labels")
    if image:
        panel.locator("input[type=file]").set_input_files(playground.SAMPLES / image)
        expect(panel.get_by_label("Your images")).to_contain_text(image)
    for label in labels:
        add(panel, label)
    return panel


def add(panel: Locator, label: str) -> None:
    field = panel.get_by_role("textbox", name="Labels")
    field.fill(label)
    field.press("Enter")


def open_search(page: Page, names: list[str] = DRAWINGS, model: str = "words@1") -> Locator:
    panel = open_mode(page, "Search")
    panel.get_by_label("Model").select_option(model)
    panel.locator(".drop input").set_input_files([playground.SAMPLES / name for name in names])
    expect(panel.locator(".found button")).to_have_count(len(names))
    says(panel, re.compile("Type a sentence|Compare with"))
    return panel


def ask(panel: Locator, sentence: str) -> None:
    panel.get_by_role("searchbox", name="A sentence").fill(sentence)
    panel.get_by_role("searchbox", name="A sentence").press("Enter")
    says(panel, "Done in")


def chips(panel: Locator) -> list[str]:
    return panel.locator(".chips span").all_text_contents()


def sum_bars(panel: Locator) -> float:
    """Return the sum of the bars in percent of the full width."""
    widths: list[float] = panel.locator(".bars i").evaluate_all("(bars) => bars.map((bar) => parseFloat(bar.style.width))")
    return sum(widths)


def order(panel: Locator) -> list[str]:
    return panel.locator(".found .name").all_text_contents()


def rank_by_cosine(speaker: Service, names: list[str], model: str, text: str) -> tuple[list[str], NDArray[np.float32]]:
    """Rank images by the vectors of the API. Returns their names, best first, and their cosines."""
    images = vectors(speaker, model, files=[("image", (playground.SAMPLES / name).read_bytes()) for name in names])
    (text_vector,) = vectors(speaker, model, text=text)
    found = images @ text_vector
    return [names[index] for index in np.argsort(-found)], np.sort(found)[::-1]


def vectors(speaker: Service, model: str, files: list[tuple[str, bytes]] | None = None, **fields: str) -> NDArray[np.float32]:
    form = {name: (None, value) for name, value in fields.items()}
    answer = httpx2.post(f"{speaker.url}/v1/embed?model={model}&encoding=base64", files=files or form, timeout=60)
    return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in answer.raise_for_status().json()["embeddings"]])


# labels


def test_scores_are_those_of_the_api(words: Page, speaker: Service) -> None:
    panel = open_labels(words, "dog", "red car", "house")
    panel.get_by_role("button", name="Run").click()
    says(panel, "Done in")
    form = [("image", (playground.SAMPLES / "mug.png").read_bytes()), *(("label", (None, label)) for label in ("dog", "red car", "house"))]
    answer = httpx2.post(f"{speaker.url}/v1/zero-shot", files=form, timeout=60).raise_for_status().json()  # type: ignore[arg-type]
    predictions = answer["results"][0]["predictions"]
    expect(panel.locator(".bars .label")).to_have_text([one["label"] for one in predictions])
    scores = [f"{100 * one['score']:.{1 if one['score'] >= 0.1 else 2}f} % · cosine {one['cosine']:.2f}" for one in predictions]
    expect(panel.locator(".bars .score")).to_have_text(scores)
    expect(panel.locator(".told")).to_contain_text("Softmax over your 3 labels, each inserted into 2 templates; the vectors of")


def test_scores_follow_when_labels_come_and_go(words: Page) -> None:
    panel = open_labels(words, "one two", "blue house")
    expect(panel.locator(".bars")).to_have_count(0)
    words.keyboard.press("Control+Enter")
    expect(panel.locator(".bars li")).to_have_count(2)
    add(panel, "green cat")
    expect(panel.locator(".bars li")).to_have_count(3)
    expect(panel.locator(".told")).to_contain_text("the vectors of 2 were cached")
    panel.get_by_role("button", name="Remove one two").click()
    expect(panel.get_by_role("button", name="Remove blue house")).to_be_focused()
    expect(panel.locator(".bars li")).to_have_count(2)
    expect(panel.locator(".told")).to_contain_text("the vectors of 2 were cached")
    eventually(lambda: sum_bars(panel) == pytest.approx(100, abs=0.1), "the bars have moved to the shares of two labels")


def test_labels_are_typed_pasted_and_taken_back(words: Page) -> None:
    panel = open_labels(words, "dog", image=None)
    field = panel.get_by_role("textbox", name="Labels")
    field.press_sequentially("a cat,")
    assert chips(panel) == ["dog", "a cat"]
    field.evaluate(
        """(field) => {
            const text = new DataTransfer();
            text.setData("text/plain", "red car\\nhouse\\r\\n dog \\n\\n");
            field.dispatchEvent(new ClipboardEvent("paste", { clipboardData: text, bubbles: true, cancelable: true }));
        }"""
    )
    assert chips(panel) == ["dog", "a cat", "red car", "house"]
    field.press("Backspace")
    assert chips(panel) == ["dog", "a cat", "red car"]


def test_missing_input_is_named(words: Page) -> None:
    panel = open_labels(words, image=None)
    says(panel, "Choose an image")
    open_labels(words)
    says(panel, "Enter at least two labels.")
    add(panel, "dog")
    says(panel, "Add another label: a single one always scores 100 %.")
    expect(panel.get_by_role("button", name="Run")).to_be_disabled()
    add(panel, "cat")
    expect(panel.get_by_role("button", name="Run")).to_be_enabled()


def test_templates_of_ones_own(words: Page) -> None:
    panel = open_labels(words, "dog", "cat")
    panel.get_by_text("Templates", exact=True).click()
    panel.get_by_label("Sentences into which labels are inserted").fill("the {} of a house\n")
    words.keyboard.press("Control+Enter")
    expect(panel.locator(".told")).to_contain_text("inserted into “the {} of a house”")
    panel.get_by_label("Sentences into which labels are inserted").fill("nothing to put it into")
    panel.get_by_role("button", name="Run").click()
    expect(panel.get_by_role("alert")).to_contain_text("template")
    expect(panel.get_by_role("alert")).to_contain_text("nothing to put it into")


def test_several_pictures_stand_side_by_side(words: Page) -> None:
    panel = open_labels(words, "dog", "cat")
    panel.locator("input[type=file]").set_input_files([playground.SAMPLES / "duck.png", playground.SAMPLES / "daisy.png"])
    expect(panel.get_by_label("Your images").locator("li")).to_have_count(3)
    panel.get_by_role("button", name="Remove duck.png").click()
    words.keyboard.press("Control+Enter")
    expect(panel.locator(".columns .caption")).to_have_text(["mug.png", "daisy.png"])
    expect(panel.locator(".columns .bars")).to_have_count(2)


def test_a_sample_brings_labels_and_runs(words: Page) -> None:
    panel = open_labels(words, image=None)
    panel.get_by_role("button", name="Drawing: mug").click()
    says(panel, "Done in")
    expect(panel.locator(".bars li")).to_have_count(5)
    assert "a mug" in chips(panel)


def test_the_same_call_with_labels(words: Page, tmp_path: Path) -> None:
    panel = open_labels(words, "red car", "@dog")
    words.keyboard.press("Control+Enter")
    says(panel, "Done in")
    labels = panel.locator(".bars .label").all_text_contents()
    saved = json.loads(download(panel, "Download JSON", tmp_path).read_text())
    shutil.copy(playground.SAMPLES / "mug.png", tmp_path)
    called = calls(panel)
    answer = json.loads(shell(called["curl"], tmp_path))
    for document in (saved, answer):
        assert [one["label"] for one in document["results"][0]["predictions"]] == labels
    assert labels[0] in python(called["Python"], tmp_path)
    assert labels[0] in shell(called["Command"], tmp_path)


# search


def test_pictures_are_sorted_by_a_sentence(words: Page, speaker: Service, tmp_path: Path) -> None:
    panel = open_search(words)
    ask(panel, "a red car")
    names, cosines = rank_by_cosine(speaker, DRAWINGS, "words", text="a red car")
    assert order(panel) == names
    expect(panel.locator(".found .cosine")).to_have_text([f"{cosine:.2f}" for cosine in cosines])
    rows = list(csv.DictReader(download(panel, "Download CSV", tmp_path).read_text().splitlines()))
    assert [row["name"] for row in rows] == names
    assert [float(row["cosine"]) for row in rows] == pytest.approx(cosines.tolist(), abs=1e-5)


def test_each_picture_is_embedded_once(words: Page) -> None:
    sent: list[str] = []

    def count(request: Request) -> None:
        if request.url.endswith("/v1/embed"):
            sent.append(request.url)

    words.on("request", count)
    panel = open_search(words)
    ask(panel, "a dog")
    assert len(sent) == len(DRAWINGS) + 1
    ask(panel, "a house")
    assert len(sent) == len(DRAWINGS) + 2
    panel.locator(".drop input").set_input_files(playground.SAMPLES / "kenya.png")
    expect(panel.locator(".found button")).to_have_count(len(DRAWINGS) + 1)
    panel.get_by_role("button", name="Run").click()
    expect(panel.locator(".told")).to_contain_text(f"{len(DRAWINGS) + 1} of {len(DRAWINGS) + 1} images")
    says(panel, "Done in")
    assert len(sent) == len(DRAWINGS) + 4


def test_a_click_finds_what_is_like_a_picture_and_arrows_walk(words: Page, speaker: Service) -> None:
    panel = open_search(words, model="encoder@1")
    expect(panel.get_by_role("searchbox")).to_be_hidden()
    panel.get_by_role("button", name="duck.png").click()
    says(panel, "Done in")
    assert order(panel)[0] == "duck.png"
    expect(panel.get_by_role("button", name="duck.png, rank 1, 1.00")).to_be_visible()
    panel.get_by_role("button", name="duck.png, rank 1").focus()
    words.keyboard.press("ArrowRight")
    expect(panel.get_by_role("button", name=f"{order(panel)[1]}, rank 2")).to_be_focused()
    last = order(panel)[-1]
    words.keyboard.press("End")
    words.keyboard.press("Enter")
    expect(panel.locator(".example")).to_contain_text(f"similar to {last}")
    expect(panel.get_by_role("button", name=f"{last}, rank 1, 1.00")).to_be_visible()


def test_a_picture_from_elsewhere_may_be_the_question(words: Page) -> None:
    panel = open_search(words)
    panel.get_by_label("Compare with an image", exact=True).set_input_files(playground.SAMPLES / "mug.png")
    expect(panel.locator(".example")).to_contain_text("similar to mug.png")
    panel.get_by_role("button", name="Run").click()
    says(panel, "Done in")
    assert order(panel)[0] == "mug.png"
    panel.get_by_role("button", name="Remove the image to compare with").click()
    says(panel, "Type a sentence")
    expect(panel.locator(".earlier")).to_contain_text("mug.png")


def test_a_folder_is_taken_and_one_bad_file_harms_no_other(words: Page, tmp_path: Path) -> None:
    for name in DRAWINGS:
        shutil.copy(playground.SAMPLES / name, tmp_path)
    (tmp_path / "cut.png").write_bytes((playground.SAMPLES / "mug.png").read_bytes()[:900])
    (tmp_path / "notes.txt").write_text("no picture")
    panel = open_mode(words, "Search")
    panel.get_by_label("Choose a folder").set_input_files(tmp_path)
    expect(panel.locator(".found button")).to_have_count(len(DRAWINGS) + 1)
    expect(panel.locator(".taken")).to_contain_text(f"Of {len(DRAWINGS) + 2} files, {len(DRAWINGS) + 1} were added.")
    ask(panel, "a dog")
    expect(panel.locator(".told")).to_contain_text(f"{len(DRAWINGS)} of {len(DRAWINGS) + 1} images, sorted by the cosine")
    expect(panel.locator(".told")).to_contain_text("1 failed")
    expect(panel.get_by_role("button", name="cut.png failed")).to_have_attribute("title", re.compile("truncated"))


def test_stop_keeps_what_is_done_and_run_goes_on(words: Page, speaker: Service) -> None:
    panel = open_search(words)
    ask(panel, "a dog")
    panel.locator(".drop input").set_input_files([playground.SAMPLES / name for name in ("kenya.png", "chad.png")])
    expect(panel.locator(".found button")).to_have_count(len(DRAWINGS) + 2)
    with frozen(speaker.children("worker")[0]):
        panel.get_by_role("button", name="Run").click()
        panel.get_by_role("button", name="Stop").click()
        says(panel, "Stopped")
        expect(panel.locator(".told")).to_contain_text(f"{len(DRAWINGS)} of {len(DRAWINGS) + 2} images")
    panel.get_by_role("button", name="Run").click()
    expect(panel.locator(".told")).to_contain_text(f"{len(DRAWINGS) + 2} of {len(DRAWINGS) + 2} images")


def test_the_same_search_elsewhere(words: Page, tmp_path: Path) -> None:
    panel = open_search(words)
    ask(panel, "a red car")
    (tmp_path / "photos").mkdir()
    for name in DRAWINGS:
        shutil.copy(playground.SAMPLES / name, tmp_path / "photos")
    best = order(panel)[0]
    called = calls(panel)
    assert json.loads(shell(called["curl"], tmp_path))["kind"] == "text"
    assert best in python(called["Python"], tmp_path).splitlines()[0]
    found = shell(called["Command"], tmp_path)
    assert min(found.index(name) for name in DRAWINGS) == found.index(best)


# states


def test_every_state_of_words(words: Page, speaker: Service) -> None:
    panel = open_labels(words, image=None)
    look(words, "labels, empty")
    open_labels(words, "dog", "a red car")
    look(words, "labels, chosen")
    with frozen(speaker.children("worker")[0]):
        panel.get_by_role("button", name="Run").click()
        says(panel, re.compile("queue|Sent"))
        look(words, "labels, queued")
        words.keyboard.press("Escape")
        says(panel, "Stopped")
    panel.get_by_role("button", name="Run").click()
    says(panel, "Done in")
    panel.get_by_text("Templates", exact=True).click()
    panel.get_by_text("The same call").click()
    look(words, "labels, done")
    panel = open_search(words)
    look(words, "search, chosen")
    ask(panel, "a dog")
    look(words, "search, done")
    for target in panel.locator(":is(button, select, summary, [type=search], .drop, label.button):visible").all():
        box = target.bounding_box()
        assert box and min(box["width"], box["height"]) >= TARGET, target.evaluate("(one) => one.outerHTML.slice(0, 80)")


def test_the_tab_is_light(context: BrowserContext, speaker: Service) -> None:
    with quiet_page(context) as page:
        page.goto(f"{speaker.url}/#words")
        page.locator("#panel-words .samples img").first.wait_for()
        page.wait_for_load_state("networkidle")
        sizes: dict[str, int] = page.evaluate(LOADED)
    assert any(name.endswith("tasks/words/tab.js") for name in sizes)
    assert sum(sizes.values()) < MAX_BYTES, sizes


# without a pair


def test_page_without_text_pair_explains_and_fills_once_there(context: BrowserContext, tmp_path: Path) -> None:
    write_tiny_vit(tmp_path)
    with serve(tmp_path) as running, quiet_page(context) as page:
        page.goto(f"{running.url}/#words")
        panel = page.get_by_role("tabpanel", name="Words")
        expect(panel).to_contain_text("No served bundle computes vectors of images or texts.")
        command = panel.get_by_role("region", name="Labels", exact=True).locator("code")
        expect(command).to_have_text(
            f"opsin import vit_b16_xlmr_b.pt -o '{tmp_path}/maws' --tokenizer xlmr.sentencepiece.bpe.model --license CC-BY-NC-4.0"
        )
        look(page, "nothing computes vectors")

        write_tiny_encoder(tmp_path)
        search = panel.get_by_role("region", name="Search", exact=True)
        expect(search.get_by_role("button", name="Use the samples")).to_be_visible()
        search.get_by_role("button", name="Use the samples").click()
        expect(search.locator(".found button")).to_have_count(11)
        search.get_by_role("button", name="mug.png").click()
        says(search, "Done in")
        expect(search.get_by_role("button", name="mug.png, rank 1, 1.00")).to_be_visible()
        look(page, "image to image")
        panel.get_by_text("Labels", exact=True).first.click()
        expect(panel).to_contain_text("No served bundle supports texts.")


def test_a_pair_without_a_tokenizer_says_how_it_gets_one(context: BrowserContext, tmp_path: Path) -> None:
    write_tiny_pair(tmp_path, "mute", tokenizer=False)
    with serve(tmp_path) as running, quiet_page(context) as page:
        page.goto(f"{running.url}/#words")
        panel = page.get_by_role("tabpanel", name="Words")
        panel.get_by_text("Labels", exact=True).first.click()
        expect(panel.locator("code").first).to_have_text("opsin bundles tokenizer mute xlmr.sentencepiece.bpe.model")
        expect(panel).to_contain_text("Then restart the service and reload this page.")


def test_pictures_are_judged_before_they_are_sent(words: Page) -> None:
    panel = open_mode(words, "Search")
    notes: FilePayload = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"words"}
    panel.locator(".drop input").set_input_files([picture(8, 8, "one.png"), notes])
    expect(panel.locator(".refusal")).to_contain_text("a.txt has an unsupported format. Choose an image.")
    expect(panel.locator(".found button")).to_have_count(1)
