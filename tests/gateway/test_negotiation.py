"""`Accept`: which of the offered media types an answer has."""

from __future__ import annotations

import socket

import pytest

from server.gateway.negotiation import choose
from server.http.problems import Kind, Problem
from tests.gateway.service import Gateway, picture
from tests.gateway.test_refusals import problem

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


def test_a_client_that_accepts_no_json_is_told_so_before_it_sends_its_body(gateway: Gateway) -> None:
    document = problem(gateway.classify(picture(1), headers={"Accept": "text/html"}), 406, "not-acceptable")
    assert document["field"] == "Accept" and "application/json" in document["detail"]
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 406"
