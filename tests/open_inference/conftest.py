from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.bundles import write_tiny_vit
from tests.open_inference.service import PICTURES, Answers, Service, running


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One gateway and one worker that serve `tiny`; for tests that leave them as they were."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(bundles)
    with running(bundles, gateways=1, workers=1) as started:
        yield started


@pytest.fixture(scope="package")
def answers(service: Service) -> Answers:
    return Answers(np.stack([service.scores(picture) for picture in PICTURES]), [service.best_labels(picture) for picture in PICTURES])
