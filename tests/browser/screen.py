"""What is on the screen, as pixels. It follows the page by some frames: wait for what is to be seen, or take what stands still."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator

from tests.harness.waiting import eventually

SOME_FRAMES_LATER = """async (element) => {
    await Promise.all([...element.querySelectorAll("img")].map((image) => image.decode()));
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
}"""


def seen(element: Locator) -> NDArray[np.int64]:
    """Red, green and blue, (height, width, 3), at this moment."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)


def still(element: Locator) -> NDArray[np.int64]:
    """What is seen once its images are there and it no longer changes from one look to the next, with frames drawn between them."""
    looks = [seen(element)]

    def same_again() -> bool:
        element.evaluate(SOME_FRAMES_LATER)
        looks.append(seen(element))
        return same(*looks[-2:])

    eventually(same_again, "it stands still")
    return looks[-1]


def same(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return np.array_equal(one, other)


def differs(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Share of pixels that are clearly others."""
    return float((np.abs(one - other).max(axis=2) > 20).mean())
