"""`Accept`: which of the offered media types an answer has."""

from __future__ import annotations

import pytest

from server.http.problems import Kind, Problem
from server.http.requests import choose

OFFERED = ("image/png", "application/json", "model/gltf-binary")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "image/png"),
        ("", "image/png"),
        (",,,", "image/png"),
        (" , ,", "image/png"),
        ("image/png;q=inf, application/json;q=0.1", "application/json"),
        ("image/png;q=inf, */*;q=0.1", "image/png"),
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("Application/JSON ; charset=utf-8", "application/json"),
        ("application/*", "application/json"),
        ("model/gltf-binary, application/json", "application/json"),
        ("model/gltf-binary, application/json;q=0.9", "model/gltf-binary"),
        ("image/png;q=0.1, */*;q=0.2", "application/json"),
        ("image/*;q=0, */*", "application/json"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "image/png"),
        ("application/json;q=2", "application/json"),
    ],
)
def test_the_highest_weight_wins_and_ties_go_by_our_order(accept: str | None, chosen: str) -> None:
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png;q=0", "*/*;q=0", "application/json;q=nan", "image/png;q=much", "png;q=inf", "png", ",;,"]
)
def test_none_of_them_is_406_with_what_is_offered(accept: str) -> None:
    with pytest.raises(Problem, match="image/png, application/json") as refusal:
        choose(accept, OFFERED)
    assert refusal.value.kind is Kind.NOT_ACCEPTABLE
