"""Heads of requests: which of the offered media types `Accept` chooses, and headers that are sent twice."""

from __future__ import annotations

import pytest

from server.http.problems import Problem, ProblemKind
from server.http.requests import Head

OFFERED = ("image/png", "application/json", "model/gltf-binary")


def head(*headers: tuple[bytes, str | None]) -> Head:
    sent = [(name, value.encode("latin-1")) for name, value in headers if value is not None]
    return Head.parse("/", sent)


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
    assert head((b"accept", accept)).negotiate(OFFERED) == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png;q=0", "*/*;q=0", "application/json;q=nan", "image/png;q=much", "png;q=inf", "png", ",;,"]
)
def test_none_of_them_is_406_with_what_is_offered(accept: str) -> None:
    with pytest.raises(Problem, match="image/png, application/json") as refusal:
        head((b"accept", accept)).negotiate(OFFERED)
    assert refusal.value.kind is ProblemKind.NOT_ACCEPTABLE


def test_async_is_preferred_whatever_else_is() -> None:
    assert head((b"prefer", "wait=5"), (b"prefer", 'handling=strict, Respond-Async ; a="b"')).prefers_async
    assert not head((b"prefer", "respond-async-later")).prefers_async


def test_an_idempotency_key_is_sent_once() -> None:
    assert head((b"idempotency-key", "a")).idempotency_key() == "a"
    assert head().idempotency_key() == ""
    with pytest.raises(Problem, match="2 times"):
        head((b"idempotency-key", "a"), (b"idempotency-key", "a")).idempotency_key()


def test_a_long_length_is_read_by_its_first_digits() -> None:
    assert head((b"content-length", "0" * 9000 + "7" * 9000)).content_length == int("7" * 19)
    assert head((b"content-length", "000")).content_length == 0
    assert head().content_length is None


@pytest.mark.parametrize("text", ["1_0", "nan", "0", "3601", "", "ten"])
def test_a_timeout_is_seconds_within_bounds(text: str) -> None:
    with pytest.raises(Problem, match=r"use seconds from 0\.001 to 3600"):
        head((b"x-request-timeout", text)).timeout_s(5.0)
