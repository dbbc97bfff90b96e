"""axe-core, the accessibility rules of Deque: fetched once from npm's registry, checked, kept in the cache folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page

URL = "https://registry.npmjs.org/axe-core/-/axe-core-4.10.3.tgz"
SHA256 = "0f2b4d7dcdf7d1219df8d1959ad68e565f51d14c3f0d88bb71cd59abeb956292"
KEPT = Path.home() / ".cache" / "opsin-tests" / f"axe-core-{SHA256[:12]}.tgz"


@cache
def script() -> str:
    package = KEPT.read_bytes() if KEPT.exists() else httpx.get(URL, timeout=60).raise_for_status().content
    assert hashlib.sha256(package).hexdigest() == SHA256, f"{URL} has changed"
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_bytes(package)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def violations(page: Page) -> list[str]:
    """Broken rules, each with the elements that break it."""
    page.evaluate(script())
    found: list[dict[str, Any]] = page.evaluate("() => axe.run().then((result) => result.violations)")
    return [f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]
