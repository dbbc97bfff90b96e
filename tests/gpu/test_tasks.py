"""All tasks over HTTP: a GPU answers as the CPU does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from opsin.client import Client
from opsin.results import Classification
from server.playground import SAMPLES
from tests.fake_cuda.device import DEVICES
from tests.support.live_service import running

STARTERS = Path(__file__).parents[2] / "bundles"
SPACING = 0.4
"""Spacing of the points of a shape, in its units: few points, so that a CPU is quick."""
Answer = tuple[str, ArrayLike]
"""The labels of an answer, and its numbers."""


def best(result: Classification) -> Answer:
    return result.predictions[0].label, result.predictions[0].score


def words(client: Client) -> Answer:
    result = client.zero_shot(SAMPLES / "umbrella.png", ["flower", "umbrella", "lock"])
    return result.predictions[0].label, [prediction.cosine for prediction in result.predictions]


def inpaint(client: Client) -> Answer:
    result = client.inpaint(SAMPLES / "padlock.png", SAMPLES / "padlock-mask.png", method="network", steps=5, seed=0)
    return result.method, result.image / 255


def reconstruct(client: Client, model: str, *depth: Path) -> Answer:
    result = client.reconstruct(SAMPLES / "mug.png", *depth, model=model, fov=30, spacing=SPACING)
    return "metric" if result.metric else "relative", result.bounds


def actions(client: Client) -> Answer:
    result = client.actions(SAMPLES / "figures.mp4", detail="fast", end_s=1)
    return f"{len(result.people)} people", [person.boxes[:5, 1:5] / 100 for person in result.people]


TASKS: dict[str, tuple[str, Callable[[Client], Answer]]] = {
    "merged": ("Brazil", lambda client: best(client.classify(SAMPLES / "brazil.png", model="flags"))),
    "unmerged": ("Nepal", lambda client: best(client.classify(SAMPLES / "nepal.png", model="flags", merge="off"))),
    "ONNX": ("otter", lambda client: best(client.classify(SAMPLES / "otters.png", model="photos"))),
    "sound": ("trumpet", lambda client: best(client.classify(audio=SAMPLES / "trumpet.flac", model="sounds"))),
    "clip": ("shake", lambda client: best(client.classify(video=SAMPLES / "lake.mp4", model="clips"))),
    "words": ("umbrella", words),
    "vectors of images": ("words", lambda client: ("words", client.embed(SAMPLES / "daisy.png", model="words").vectors)),
    "vectors of texts": ("words", lambda client: ("words", client.embed(texts="a daisy", model="words").vectors)),
    "steps of inpainting": ("network", inpaint),
    "shape with depth": ("metric", lambda client: reconstruct(client, "reconstruct", SAMPLES / "mug-depth.png")),
    "shape of a photograph": ("relative", lambda client: reconstruct(client, "shapes")),
    "actions": ("2 people", actions),
}


@cache
def answers(device: str) -> dict[str, Answer]:
    """Return a device's answers to all tasks."""
    with running(STARTERS, of_workers={"device": device}) as service, Client(service.url, timeout=120) as client:
        for model in client.models():
            assert [worker["device"] for worker in client.model(model.id).details["workers"]] == [device]
        return {name: ask(client) for name, (_, ask) in TASKS.items()}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_device_answers_as_the_cpu_does(device: str, task: str) -> None:
    label, numbers = answers(device)[task]
    assert label == TASKS[task][0]
    np.testing.assert_allclose(numbers, answers("cpu")[task][1], rtol=1e-3, atol=0.01)
