"""The views that the published tests of MViT take, where a request asks for none."""

from __future__ import annotations

import pytest

from models.registry import ViewCounts, architectures


@pytest.mark.parametrize(
    ("config", "views"),
    [
        ({"image_size": 224, "classes": 400}, ViewCounts(5, crops=1)),
        ({"image_size": 312, "classes": 400}, ViewCounts(5, crops=3)),
        ({"image_size": 224, "classes": 174}, ViewCounts(1, crops=3)),
        ({"image_size": 312, "classes": 174}, ViewCounts(1, crops=3)),
    ],
)
def test_each_data_set_has_the_views_of_its_published_test(config: dict[str, int], views: ViewCounts) -> None:
    assert architectures()["mvit"].views(config) == views
