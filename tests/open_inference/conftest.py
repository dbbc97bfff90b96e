from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from tests.support.bundles.vit import write_tiny_vit
from tests.support.fake_worker import picture
from tests.support.live_service import MAX_IMAGES, SMALL_LIMITS, Service, running

PICTURES = [picture(step, size=(40 + step, 32), kind="JPEG") for step in range(MAX_IMAGES)]


@dataclass(frozen=True)
class Answers:
    """The answers of `/v1/classify` to PICTURES."""

    scores: np.ndarray
    """(pictures, classes)."""
    labels: list[list[str]]
    """The five best of each."""


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One gateway and one worker that serve `tiny`; for tests that leave them as they were."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(bundles)
    with running(bundles, **SMALL_LIMITS) as started:
        yield started


@pytest.fixture(scope="package")
def answers(service: Service) -> Answers:
    return Answers(np.stack([service.scores(picture) for picture in PICTURES]), [service.best_labels(picture) for picture in PICTURES])
