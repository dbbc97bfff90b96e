"""The pages of a gateway with API keys, which shares the queue of the other service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import BrowserContext, Page, Request, expect

from server.gateway.auth.key_file import ApiKey, format_line, hash_key, new_key
from tests.browser import pages
from tests.browser.pages import quiet_page
from tests.browser.tabs import download, open_3d, open_classify, run, start
from tests.support.gateway_process import gateway_process
from tests.support.serve_process import Service
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser


@dataclass(frozen=True)
class GuardedGateway:
    url: str
    keys: dict[str, str]


@pytest.fixture(scope="module")
def guarded(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedGateway]:
    [pid] = service.children("valkey-server")
    found = re.search(r"/\S+\.sock", " ".join(psutil.Process(pid).cmdline()))
    assert found is not None
    holders = [ApiKey("alice"), ApiKey("watcher", metrics=True)]
    keys, file = {holder.name: new_key() for holder in holders}, tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("".join(f"{format_line(one, hash_key(keys[one.name].encode()))}\n" for one in holders))
    with gateway_process(f"unix://{found[0]}", api_keys_file=file, worker_grace=300.0) as running:
        yield GuardedGateway(running.url, keys)


@pytest.fixture
def locked_page(context: BrowserContext, guarded: GuardedGateway) -> Iterator[Page]:
    """The playground when it is opened for the first time."""
    with quiet_page(context, refused=True) as page:
        page.goto(guarded.url)
        expect(page.get_by_role("dialog", name="This service requires an API key")).to_be_visible()
        yield page


def give(page: Page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Use", exact=True).click()


def test_a_page_asks_for_a_key_and_keeps_it_in_its_tab_alone(locked_page: Page, guarded: GuardedGateway, context: BrowserContext) -> None:
    assert pages.violations(locked_page) == []
    locked_page.emulate_media(color_scheme="dark")
    assert pages.violations(locked_page, pages.COLOURS) == []
    locked_page.emulate_media(color_scheme="light")
    give(locked_page, guarded.keys["alice"])
    locked_page.get_by_role("tab", name="Classify").wait_for()
    expect(locked_page.get_by_role("button", name="Key: in use")).to_be_visible()
    locked_page.reload()
    locked_page.get_by_role("tab", name="Classify").wait_for()
    expect(locked_page.get_by_role("dialog")).to_have_count(0)
    assert guarded.keys["alice"] not in str(locked_page.evaluate("() => [JSON.stringify(localStorage), document.cookie, location.href]"))
    with quiet_page(context, refused=True) as another:
        another.goto(guarded.url)
        expect(another.get_by_role("dialog")).to_be_visible()


def test_requests_have_key_in_header_and_none_in_address(locked_page: Page, guarded: GuardedGateway, tmp_path: Path) -> None:
    """Prove it for calls, streams of events, answers, downloads, and the deletion of old jobs."""
    give(locked_page, guarded.keys["alice"])
    sent: list[Request] = []
    locked_page.on("request", lambda request: sent.append(request))
    panel = open_3d(locked_page)
    run(panel)
    assert download(panel, "Download PLY", tmp_path).read_bytes().startswith(b"ply")
    run(panel)
    eventually(lambda: any(request.method == "DELETE" for request in sent), "the first answer is removed")
    calls = [request for request in sent if "/v1/" in request.url]
    assert {"POST", "GET", "DELETE"} <= {request.method for request in calls}
    assert all(request.all_headers().get("x-api-key") == guarded.keys["alice"] for request in calls)
    assert not any(guarded.keys["alice"] in request.url for request in sent)


OFTEN = "const every = setInterval; window.looks = 0; window.setInterval = (look) => every(() => { window.looks += 1; look(); }, 50);"
"""Script that repeats 20 times a second what a page repeats every few seconds. Playwright's clock would affect all later pages."""


def test_a_page_without_a_key_sends_no_requests(context: BrowserContext, guarded: GuardedGateway) -> None:
    keys: list[str | None] = []
    with quiet_page(context, refused=True) as page:
        page.add_init_script(OFTEN)
        page.on("request", lambda request: keys.append(request.headers.get("x-api-key")))
        page.goto(guarded.url)
        give(page, guarded.keys["alice"])
        page.get_by_role("tab", name="Classify").wait_for()
        page.evaluate("() => sessionStorage.setItem('key', 'opsin_revoked')")
        expect(page.get_by_role("dialog", name="This service requires an API key")).to_be_visible()
        page.wait_for_function("(before) => window.looks > before + 4", arg=page.evaluate("() => window.looks"))
        expect(page.get_by_role("dialog", name="This service requires an API key")).to_be_visible()
    assert keys.count("opsin_revoked") == 1


def test_a_run_goes_on_once_there_is_a_key(locked_page: Page, guarded: GuardedGateway) -> None:
    give(locked_page, guarded.keys["alice"])
    panel = open_classify(locked_page)
    locked_page.evaluate("() => sessionStorage.setItem('key', 'opsin_revoked')")
    start(panel)
    dialog = locked_page.get_by_role("dialog", name="This service requires an API key")
    expect(dialog.get_by_role("alert")).to_have_text("unknown or revoked API key")
    give(locked_page, "no key")
    expect(dialog.get_by_role("alert")).to_contain_text("This is not a key")
    give(locked_page, guarded.keys["alice"])
    expect(panel.locator("p.line")).to_contain_text("Done in")


def test_dismissed_key_dialog_reopens_only_with_the_next_run(locked_page: Page, guarded: GuardedGateway) -> None:
    give(locked_page, guarded.keys["alice"])
    panel = open_classify(locked_page)
    locked_page.get_by_role("button", name="Key: in use").click()
    locked_page.get_by_role("button", name="Forget").click()
    expect(locked_page.get_by_role("button", name="Key: none")).to_be_visible()
    expect(locked_page.locator("#health")).to_have_text("An API key is needed")
    expect(locked_page.get_by_role("dialog")).to_have_count(0)
    start(panel)
    locked_page.get_by_role("dialog").press("Escape")
    expect(panel.get_by_role("alert").first).to_contain_text("An API key is needed")
    expect(locked_page.get_by_role("dialog")).to_have_count(0)


def test_copied_calls_name_a_variable(locked_page: Page, guarded: GuardedGateway) -> None:
    give(locked_page, guarded.keys["alice"])
    panel = open_classify(locked_page)
    run(panel)
    panel.get_by_text("The same call").click()
    calls = panel.locator(".calls").inner_text()
    assert '-H "X-API-Key: $OPSIN_API_KEY"' in calls and guarded.keys["alice"] not in calls


def test_the_status_page_needs_a_key_that_may_read_it(context: BrowserContext, guarded: GuardedGateway) -> None:
    with quiet_page(context, refused=True) as page:
        page.goto(f"{guarded.url}/status")
        give(page, guarded.keys["alice"])
        expect(page.locator("#problem")).to_contain_text("The API key does not allow this")
        page.get_by_role("button", name="Key: in use").click()
        give(page, guarded.keys["watcher"])
        expect(page.locator("#workers")).to_contain_text("flags@1.0.0")
        expect(page.locator("#problem")).to_be_hidden()
        page.get_by_role("link", name="Metrics").click()
        expect(page.locator("body")).to_contain_text("opsin_redis_up 1.0")


def test_a_service_without_keys_opens_no_key_dialog(page: Page) -> None:
    expect(page.get_by_role("button", name="Key: none")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert json.loads(page.evaluate("() => JSON.stringify(sessionStorage)")) == {}
