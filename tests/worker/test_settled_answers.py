"""Answers do not wander: once backends are settled, no load, batch size or restart changes them (contract, section 5)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fake_cuda.device import DEVICES
from tests.support.images import encode
from tests.support.serve_process import Service, serve
from tests.support.waiting import eventually

FLAGS = Path(__file__).parents[2] / "bundles" / "flags"
RUNGS = ("off", "steps13")
IMAGES = 200
LOADS = (1, 8, 32)
"""Numbers of clients."""
MARGIN = 0.02
"""Difference of the two best scores from which the label counts."""
SETTLING_S = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def tricolour(seed: int) -> bytes:
    """Draw a flag of three stripes with a disc on it, or a cross."""
    random = np.random.default_rng(seed)
    stripes = random.integers(0, 256, (3, 3), np.uint8).repeat(40, axis=0)[:, None].repeat(180, axis=1)  # (H, W, 3)
    image = Image.fromarray(stripes if seed % 2 else np.ascontiguousarray(stripes.swapaxes(0, 1)))
    colour, side = tuple(map(int, random.integers(0, 256, 3))), 20 + seed % 60
    image.paste(colour, (30, 30, 30 + side, 30 + side // 2))
    return encode(image)


@contextmanager
def flags(tmp_path: Path, dtype: str, device: str = "cpu") -> Iterator[Service]:
    bundles = tmp_path / "bundles"
    if not bundles.exists():
        shutil.copytree(FLAGS, bundles / "flags")
    with serve(bundles, cache=tmp_path / "cache", dtype=dtype, device=device) as service:
        yield service


def answers(service: Service, clients: int) -> list[dict[str, Any]]:
    """Classify all images, half of them at each rung, by so many clients at once."""

    def classify(number: int) -> dict[str, Any]:
        response = service.classify(tricolour(number), merge=RUNGS[number % 2], top_k=238)
        [result] = response.raise_for_status().json()["results"]
        assert isinstance(result, dict)
        return result

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(classify, range(IMAGES)))


def settled_rungs(cache: Path) -> int:
    return sum(len(json.loads(file.read_text())["learned"]["rungs"]) for file in (cache / "learned").glob("*.json"))


def settle(service: Service, cache: Path) -> None:
    """Ask until the kind of both rungs is settled and stored."""

    def is_settled() -> bool:
        answers(service, 8)
        return settled_rungs(cache) >= len(RUNGS)

    eventually(is_settled, "both rungs are settled", SETTLING_S)


def ask_under_all_loads(service: Service) -> list[list[dict[str, Any]]]:
    return [answers(service, clients) for clients in LOADS]


def scores(result: dict[str, Any]) -> dict[int, float]:
    return {prediction["index"]: prediction["score"] for prediction in result["predictions"]}


@pytest.mark.parametrize("device", DEVICES)
def test_labels_and_rungs_stay_once_they_are_settled(tmp_path: Path, device: str) -> None:
    with flags(tmp_path, "auto", device) as service:
        settle(service, tmp_path / "cache")
        loads = ask_under_all_loads(service)
    with flags(tmp_path, "auto", device) as service:
        loads += ask_under_all_loads(service)

    clear = 0
    for number, results in enumerate(zip(*loads, strict=True)):
        assert {result["merging"]["rung"] for result in results} == {None if number % 2 == 0 else RUNGS[1]}
        best, second = (prediction["score"] for prediction in results[0]["predictions"][:2])
        if best - second >= MARGIN:
            clear += 1
            assert len({result["predictions"][0]["label"] for result in results}) == 1, number
    assert clear > IMAGES // 2


def test_float32_scores_stay_within_1e_4(tmp_path: Path) -> None:
    with flags(tmp_path, "float32") as service:
        loads = ask_under_all_loads(service)
    with flags(tmp_path, "float32") as service:
        loads += ask_under_all_loads(service)

    for results in zip(*loads, strict=True):
        first, *others = map(scores, results)
        assert all(abs(other[index] - score) <= 1e-4 for other in others for index, score in first.items())
