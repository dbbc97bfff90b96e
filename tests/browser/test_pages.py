"""The pages as a whole: what they weigh, where they reach, how they look to everybody."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.browser import axe
from tests.browser.chromium import DESKTOP, PHONE, quiet_page
from tests.browser.prefix_proxy import proxied
from tests.browser.test_actions import open_actions
from tests.browser.test_actions import run as run_actions
from tests.browser.test_classify import classify
from tests.browser.test_inpaint import open_inpaint, run
from tests.browser.test_reconstruct import open_3d
from tests.browser.test_reconstruct import run as run_3d
from tests.service import Service

pytestmark = pytest.mark.browser
MOST_BYTES = 100_000


def test_the_page_is_small_and_under_a_strict_policy(page: Page, service: Service) -> None:
    policy = httpx.get(service.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    open_3d(page)
    own = scripts(page)
    assert sum(own.values()) + len(httpx.get(service.url).content) < MOST_BYTES
    assert any(name.endswith("tasks/reconstruct.js") for name in own)
    assert not any("vendor" in name or name.endswith("tasks/inpaint.js") for name in own)  # each when it is needed


def scripts(page: Page) -> dict[str, int]:
    """Bytes of each file of the page that was loaded so far."""
    sizes = page.evaluate("() => performance.getEntriesByType('resource').map((entry) => [entry.name, entry.decodedBodySize])")
    return {name: size for name, size in sizes if name.endswith((".js", ".css", ".svg"))}


def test_tabs_follow_what_is_served(page: Page, service: Service) -> None:
    models = httpx.get(f"{service.url}/v1/models").json()["models"]
    served = {model["task"] for model in models if model["state"] == "ready"}
    titles = {"classify": "Classify", "inpaint": "Inpaint", "reconstruct": "3D", "actions": "Actions"}
    assert page.get_by_role("tab").all_text_contents() == [title for task, title in titles.items() if task in served]
    page.get_by_role("tab", name="Classify").press("ArrowRight")
    expect(page.get_by_role("tab", name="Inpaint")).to_have_attribute("aria-selected", "true")
    page.reload()
    expect(page.get_by_role("tab", name="Inpaint")).to_have_attribute("aria-selected", "true")


def finished_classify(page: Page) -> None:
    page.get_by_label("Compare with merging off").check()
    classify(page)
    page.get_by_text("The same call").click()


def finished_inpaint(page: Page) -> None:
    panel = open_inpaint(page)
    run(panel)
    expect(panel.locator("p.line")).to_contain_text("Done in")


def finished_3d(page: Page) -> None:
    run_3d(open_3d(page))


def finished_actions(page: Page) -> None:
    run_actions(open_actions(page, seconds=2))


def open_status(page: Page) -> None:
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#workers")).to_contain_text("flags@1.0.0")


def untouched(page: Page) -> None:
    expect(page.get_by_role("button", name="Flag of Brazil")).to_be_visible()


STATES = pytest.mark.parametrize("reach", [untouched, finished_classify, finished_inpaint, finished_3d, finished_actions, open_status])


@STATES
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, reach: Callable[[Page], None], theme: str) -> None:
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
    reach(page)
    assert axe.violations(page) == []


@STATES
def test_a_phone_shows_all_of_it(page: Page, reach: Callable[[Page], None]) -> None:
    page.set_viewport_size(PHONE)
    try:
        reach(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
        if page.get_by_role("button", name="Run", exact=True).count():
            expect(page.get_by_role("button", name="Run", exact=True)).to_be_in_viewport()
    finally:
        page.set_viewport_size(DESKTOP)


def test_the_theme_button_is_remembered(page: Page) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.get_by_role("button", name="Change between light and dark").click()
    after = page.evaluate(ground)
    assert after != before
    page.reload()
    assert page.evaluate(ground) == after
    page.evaluate("() => localStorage.clear()")


def test_everything_works_behind_a_prefix(context: BrowserContext, service: Service) -> None:
    with proxied(service.url, "/vision/opsin") as address, quiet_page(context) as page:
        page.goto(address)
        classify(page)
        finished_inpaint(page)
        finished_3d(page)
        finished_actions(page)
        open_status(page)


def test_a_task_that_is_not_served_has_no_tab(context: BrowserContext, service: Service) -> None:
    """As with a service without a bundle for shapes."""

    def without_shapes(route: Route) -> None:
        answer = route.fetch()
        models = [model for model in answer.json()["models"] if model["task"] != "reconstruct"]
        route.fulfill(response=answer, json={"models": models})

    with quiet_page(context) as page:
        page.route("**/v1/models", without_shapes)
        page.goto(service.url)
        expect(page.get_by_role("tab")).to_have_text(["Classify", "Inpaint", "Actions"])


def test_the_skip_link_comes_first(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the playground")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Classify")).to_have_attribute("aria-selected", "true")


def test_the_status_page_draws_what_has_just_happened(page: Page) -> None:
    classify(page)
    open_status(page)
    chart = page.get_by_role("img", name="Requests and items")
    page.wait_for_function("() => /L\\d/.test(document.querySelector('.plot .s0').getAttribute('d'))")
    drawn = chart.locator("path.s0").get_attribute("d") or ""
    heights = {point.partition(" ")[2].partition("h")[0] for point in drawn.replace("M", "L").split("L") if point}
    assert len(heights) > 1  # a flat line would be a quarter of an hour without requests
    expect(page.locator("#now")).to_contain_text("1 of 1")
