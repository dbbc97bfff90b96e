"""The pages of a gateway that asks for API keys: another one on the queue of the service that is there."""

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
class Guarded:
    url: str
    keys: dict[str, str]


@pytest.fixture(scope="module")
def guarded(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    [pid] = service.children("valkey-server")
    found = re.search(r"/\S+\.sock", " ".join(psutil.Process(pid).cmdline()))
    assert found is not None
    holders = [ApiKey("alice"), ApiKey("watcher", metrics=True)]
    keys, file = {holder.name: new_key() for holder in holders}, tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("".join(f"{format_line(one, hash_key(keys[one.name].encode()))}\n" for one in holders))
    with gateway_process(f"unix://{found[0]}", api_keys_file=file, worker_grace=300.0) as running:
        yield Guarded(running.url, keys)


@pytest.fixture
def asked(context: BrowserContext, guarded: Guarded) -> Iterator[Page]:
    """The playground as it is opened for the first time."""
    with quiet_page(context, refused=True) as page:
        page.goto(guarded.url)
        expect(page.get_by_role("dialog", name="This service needs a key")).to_be_visible()
        yield page


def give(page: Page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Use", exact=True).click()


def test_a_page_asks_for_a_key_and_keeps_it_in_its_tab_alone(asked: Page, guarded: Guarded, context: BrowserContext) -> None:
    assert pages.violations(asked) == []
    asked.emulate_media(color_scheme="dark")
    assert pages.violations(asked, pages.COLOURS) == []
    asked.emulate_media(color_scheme="light")
    give(asked, guarded.keys["alice"])
    asked.get_by_role("tab", name="Classify").wait_for()
    expect(asked.get_by_role("button", name="Key: in use")).to_be_visible()
    asked.reload()
    asked.get_by_role("tab", name="Classify").wait_for()
    expect(asked.get_by_role("dialog")).to_have_count(0)
    assert guarded.keys["alice"] not in str(asked.evaluate("() => [JSON.stringify(localStorage), document.cookie, location.href]"))
    with quiet_page(context, refused=True) as another:
        another.goto(guarded.url)
        expect(another.get_by_role("dialog")).to_be_visible()


def test_requests_have_key_in_header_and_none_in_address(asked: Page, guarded: Guarded, tmp_path: Path) -> None:
    """Calls, streams of events, answers, downloads, and the removal of what is not needed any more."""
    give(asked, guarded.keys["alice"])
    sent: list[Request] = []
    asked.on("request", lambda request: sent.append(request))
    panel = open_3d(asked)
    run(panel)
    assert download(panel, "Download PLY", tmp_path).read_bytes().startswith(b"ply")
    run(panel)
    eventually(lambda: any(request.method == "DELETE" for request in sent), "the first answer is removed")
    calls = [request for request in sent if "/v1/" in request.url]
    assert {"POST", "GET", "DELETE"} <= {request.method for request in calls}
    assert all(request.all_headers().get("x-api-key") == guarded.keys["alice"] for request in calls)
    assert not any(guarded.keys["alice"] in request.url for request in sent)


OFTEN = "const every = setInterval; window.looks = 0; window.setInterval = (look) => every(() => { window.looks += 1; look(); }, 50);"
"""What a page does each few seconds it does 20 times a second. Playwright's clock would stay in all later pages of the browser."""


def test_a_page_that_waits_for_a_key_asks_for_nothing_meanwhile(context: BrowserContext, guarded: Guarded) -> None:
    keys: list[str | None] = []
    with quiet_page(context, refused=True) as page:
        page.add_init_script(OFTEN)
        page.on("request", lambda request: keys.append(request.headers.get("x-api-key")))
        page.goto(guarded.url)
        give(page, guarded.keys["alice"])
        page.get_by_role("tab", name="Classify").wait_for()
        page.evaluate("() => sessionStorage.setItem('key', 'opsin_revoked')")
        expect(page.get_by_role("dialog", name="This service needs a key")).to_be_visible()
        page.wait_for_function("(before) => window.looks > before + 4", arg=page.evaluate("() => window.looks"))
        expect(page.get_by_role("dialog", name="This service needs a key")).to_be_visible()
    assert keys.count("opsin_revoked") == 1


def test_a_run_goes_on_once_there_is_a_key(asked: Page, guarded: Guarded) -> None:
    give(asked, guarded.keys["alice"])
    panel = open_classify(asked)
    asked.evaluate("() => sessionStorage.setItem('key', 'opsin_revoked')")
    start(panel)
    dialog = asked.get_by_role("dialog", name="This service needs a key")
    expect(dialog.get_by_role("alert")).to_have_text("unknown or revoked API key")
    give(asked, "no key")
    expect(dialog.get_by_role("alert")).to_contain_text("That is no key")
    give(asked, guarded.keys["alice"])
    expect(panel.locator("p.line")).to_contain_text("Done in")


def test_whoever_declines_is_asked_again_by_the_next_run_alone(asked: Page, guarded: Guarded) -> None:
    give(asked, guarded.keys["alice"])
    panel = open_classify(asked)
    asked.get_by_role("button", name="Key: in use").click()
    asked.get_by_role("button", name="Forget").click()
    expect(asked.get_by_role("button", name="Key: none")).to_be_visible()
    expect(asked.locator("#health")).to_have_text("An API key is needed")
    expect(asked.get_by_role("dialog")).to_have_count(0)
    start(panel)
    asked.get_by_role("dialog").press("Escape")
    expect(panel.get_by_role("alert").first).to_contain_text("An API key is needed")
    expect(asked.get_by_role("dialog")).to_have_count(0)


def test_copied_calls_name_a_variable(asked: Page, guarded: Guarded) -> None:
    give(asked, guarded.keys["alice"])
    panel = open_classify(asked)
    run(panel)
    panel.get_by_text("The same call").click()
    shown = panel.locator(".calls").inner_text()
    assert '-H "X-API-Key: $OPSIN_API_KEY"' in shown and guarded.keys["alice"] not in shown


def test_the_status_page_needs_a_key_that_may_read_it(context: BrowserContext, guarded: Guarded) -> None:
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


def test_a_service_without_keys_is_not_asked_about(page: Page) -> None:
    expect(page.get_by_role("button", name="Key: none")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert json.loads(page.evaluate("() => JSON.stringify(sessionStorage)")) == {}
