"""How soon the playground is ready and how much it loads, and what watching the status page costs: `python -m benchmarks.playground`.

Starts the service with the starter bundles, and Chromium with an empty cache for each loading. Needs what `make test-browser` installs.

- **ready**: from the address being entered until Run and the samples of a tab can be used;
- **bytes**: all answers with their heads, as they are sent, pictures and JSON included, until nothing more is loaded;
- **status page**: CPU time of the service's processes while one visible status page refreshes itself, less what they spend without
  it, as a share of one core; and that of the browser's processes, less what they spend on an empty page.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from benchmarks import machine
from benchmarks.service import running

BUNDLES = Path("bundles")
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
)
TABS = {"classify": "Classify", "inpaint": "Inpaint", "reconstruct": "3D", "actions": "Actions"}
ROUNDS = 5
SECONDS = 40.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.playground", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="loadings of each tab")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that the status page is watched")
    parser.add_argument("--chromium", default=CHROMIUM)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    machine.show()
    with running(BUNDLES) as url, sync_playwright() as playwright, browser(playwright, arguments.chromium) as chromium:
        loading = {task: load(chromium, url, task, title, arguments.rounds) for task, title in TABS.items()}
        for task, found in loading.items():
            print(
                f"{TABS[task]:9} ready in {median(found['ready_s']):.2f} s ({min(found['ready_s']):.2f}..{max(found['ready_s']):.2f}), "
                f"{found['requests']} requests, {found['bytes'] / 1000:.0f} kB"
            )
        watching = watch(chromium, url, arguments.seconds)
        for process_name, share in watching.items():
            print(f"status page, {process_name}: {100 * share:.2f} % of a core")
    if arguments.json:
        machine.write_result(parser.prog, {"loading": loading, "watching": watching}, arguments.json)
    return 0


@contextmanager
def browser(playwright: Playwright, executable: str) -> Iterator[Browser]:
    running_browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
    try:
        yield running_browser
    finally:
        running_browser.close()


def load(chromium: Browser, url: str, task: str, title: str, rounds: int) -> dict[str, Any]:
    """Open a tab `rounds` times with an empty cache, and once before to warm the browser's processes."""
    seconds, loaded = [], list[int]()
    for number in range(rounds + 1):
        page = chromium.new_page()
        started_at = time.perf_counter()
        page.goto(f"{url}/#{task}", wait_until="commit")
        panel = page.get_by_role("tabpanel", name=title)
        panel.get_by_role("button", name="Run", exact=True).wait_for()
        panel.locator(".samples img").first.wait_for()
        if number:
            seconds.append(time.perf_counter() - started_at)
        page.wait_for_load_state("networkidle")
        loaded = sizes(page)
        page.close()
    return {"ready_s": seconds, "requests": len(loaded), "bytes": sum(loaded)}


def sizes(page: Page) -> list[int]:
    """Bytes of each answer that the page was made of, heads included."""
    kinds = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    found: list[int] = page.evaluate(f"() => {kinds}.map((entry) => entry.transferSize)")
    return found


def watch(chromium: Browser, url: str, seconds: float) -> dict[str, float]:
    """Shares of one core: the service's processes, and the browser's."""
    service = [
        process for process in psutil.Process().children(recursive=True) if "opsin" in _command(process) or "valkey" in _command(process)
    ]
    page = chromium.new_page()
    page.goto(f"{url}/status")
    page.locator("#workers td").first.wait_for()
    time.sleep(3)
    watched, browser_share = cpu_seconds(seconds, service, browsing())
    page.goto("about:blank")
    time.sleep(3)
    idle, empty = cpu_seconds(seconds, service, browsing())
    return {
        "the service": watched - idle,
        "the service when nobody looks": idle,
        "the browser": browser_share - empty,
        "the browser on an empty page": empty,
    }


def browsing() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if "chromium" in _command(process)]


def cpu_seconds(seconds: float, *groups: list[psutil.Process]) -> list[float]:
    """CPU seconds a second of each group of processes."""
    before, started_at = [_cpu(group) for group in groups], time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - started_at
    return [(_cpu(group) - start) / passed for group, start in zip(groups, before, strict=True)]


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


if __name__ == "__main__":
    raise SystemExit(main())
