"""Classification through a real gateway and a real worker with a real, small network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.open_inference.conftest import PICTURES
from tests.support.bundles.vit import write_tiny_vit
from tests.support.live_service import SMALL_LIMITS, Service, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(bundles)
    with running(bundles, **SMALL_LIMITS) as started:
        yield started


def test_trace_is_optional_and_changes_nothing_else(service: Service) -> None:
    answers = [service.gateway.classify_all(*PICTURES, merge="fast", trace=trace) for trace in ("false", "true")]
    plain, traced = (answer.raise_for_status().json()["results"] for answer in answers)
    for without, with_trace in zip(plain, traced, strict=True):
        trace = with_trace["merging"].pop("trace")
        assert with_trace["merging"] == without["merging"]
        assert with_trace["predictions"] == [pytest.approx(prediction) for prediction in without["predictions"]]
        assert trace["grid"] == [4, 4]
        assert [len(layer) for layer in trace["layers"]] == [16, 16]
        assert [len(set(layer)) for layer in trace["layers"]] == [12, 8]
        assert len(set(trace["layers"][-1])) + 1 == with_trace["merging"]["tokens_out"]
