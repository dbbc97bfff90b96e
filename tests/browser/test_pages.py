"""The pages as a whole: their size, policy, themes and tabs, and their work behind a proxy."""

from __future__ import annotations

from functools import partial

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.browser.pages import quiet_page
from tests.browser.tabs import open_3d, open_actions, open_classify, open_inpaint, open_status, run
from tests.support.fake_servers import proxy
from tests.support.serve_process import Service
from tests.support.waiting import eventually

pytestmark = pytest.mark.browser
MAX_BYTES = 100_000
LOADED = """() => Object.fromEntries([...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .map((entry) => [entry.name, entry.encodedBodySize]))"""
"""Script that returns the size in bytes of everything that the page has fetched, by address."""


def test_the_pages_are_under_a_strict_policy(service: Service) -> None:
    for path in ("/", "/status"):
        policy = httpx2.get(service.url + path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize("task", ["classify", "inpaint", "reconstruct", "actions"])
def test_a_tab_is_light_until_something_needs_three(context: BrowserContext, service: Service, task: str) -> None:
    with quiet_page(context) as page:
        page.goto(f"{service.url}/#{task}")
        page.locator(f"#panel-{task} .samples img").first.wait_for()
        page.wait_for_load_state("networkidle")
        loaded: dict[str, int] = page.evaluate(LOADED)
    assert any(name.endswith(f"tasks/{task}/tab.js") for name in loaded)
    assert not any("vendor" in name for name in loaded)
    assert sum(loaded.values()) < MAX_BYTES, loaded


def test_tabs_follow_what_is_served(page: Page, service: Service) -> None:
    models = httpx2.get(f"{service.url}/v1/models").json()["models"]
    served = {model["task"] for model in models if model["state"] == "ready"}
    titles = {"classify": "Classify", "inpaint": "Inpaint", "reconstruct": "3D", "actions": "Actions"}
    expect(page.get_by_role("tab")).to_have_text([*(title for task, title in titles.items() if task in served), "Clips and sound", "Words"])
    page.get_by_role("tab", name="Classify").press("ArrowRight")
    expect(page.get_by_role("tab", name="Inpaint")).to_have_attribute("aria-selected", "true")
    page.reload()
    expect(page.get_by_role("tab", name="Inpaint")).to_have_attribute("aria-selected", "true")


def test_the_theme_button_is_remembered(page: Page) -> None:
    def ground() -> str:
        colour: str = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return colour

    before = ground()
    page.get_by_role("button", name="Switch between light and dark").click()
    eventually(lambda: ground() != before, "the ground is another")
    after = ground()
    page.reload()
    eventually(lambda: ground() == after, "it is so again")
    page.evaluate("() => localStorage.clear()")


def test_everything_works_behind_a_prefix(context: BrowserContext, service: Service) -> None:
    with proxy(service.url, "/vision/opsin") as address, quiet_page(context) as page:
        page.goto(address)
        for open_tab in (open_classify, open_inpaint, open_3d, partial(open_actions, seconds=1)):
            run(open_tab(page))
        open_status(page)


def test_the_api_can_be_tried_behind_a_prefix(context: BrowserContext, service: Service) -> None:
    with proxy(service.url, "/vision/opsin") as address, quiet_page(context) as page:
        page.goto(f"{address}docs")
        operation = page.locator(".opblock").filter(has_text="/health/ready").first
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table .response-col_status").last).to_contain_text("200")


def test_a_task_that_is_not_served_has_no_tab(context: BrowserContext, service: Service) -> None:
    """Remove the bundle for shapes from the service's list of models."""

    def without_shapes(route: Route) -> None:
        answer = route.fetch()
        models = [model for model in answer.json()["models"] if model["task"] != "reconstruct"]
        route.fulfill(response=answer, json={"models": models})

    with quiet_page(context) as page:
        page.route("**/v1/models", without_shapes)
        page.goto(service.url)
        expect(page.get_by_role("tab")).to_have_text(["Classify", "Inpaint", "Actions", "Clips and sound", "Words"])


def test_the_skip_link_comes_first(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the playground")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Classify")).to_have_attribute("aria-selected", "true")


def test_the_status_page_draws_what_has_just_happened(page: Page) -> None:
    run(open_classify(page))
    open_status(page)
    chart = page.get_by_role("img", name="Requests and items")

    def heights() -> set[str]:
        drawn = chart.locator("path.s0").get_attribute("d") or ""
        return {point.partition(" ")[2].partition("h")[0] for point in drawn.replace("M", "L").split("L") if point}

    eventually(lambda: len(heights()) > 1, "the line rises: a flat one would be a quarter of an hour without requests")
    expect(page.locator("#now")).to_contain_text("1 of 1")
    expect(page.get_by_role("figure").filter(has_text="Tokens")).to_contain_text("% saved by merging")
