"""Heads that could mean one request to a proxy and another to the gateway: framing and hosts are read in one way or refused."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_worker import Worker, picture
from tests.support.gateway_process import Gateway, gateway_process
from tests.support.raw_http import NOTHING, Answer, Raw, ask, post
from tests.support.redis import private_valkey

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"


def to_chunks(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)


def refusal(answer: Answer, status: int, slug: str) -> tuple[str | None, str]:
    """Field and detail; the connection ends, since what follows on it could be the body."""
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    document = json.loads(answer.body)
    assert document["type"] == f"urn:opsin:{slug}"
    return document.get("field"), document["detail"]


@pytest.mark.parametrize(
    "codings",
    [["gzip, chunked"], ["identity, chunked"], ["gzip"], ["identity"], ["x-chunked"], ["chunked;q=1"], ["gzip", "chunked"]],
    ids=" and ".join,
)
def test_an_unknown_transfer_coding_is_not_implemented(gateway: Gateway, codings: list[str]) -> None:
    lines = [f"Transfer-Encoding: {coding}" for coding in codings]
    with Raw(gateway) as raw:
        raw.send(post("/v1/classify", *lines, body=to_chunks(picture(3))) + HEALTH)
        field, detail = refusal(raw.answer(), 501, "not-offered")
        assert field == "Transfer-Encoding" and "chunked" in detail
        assert raw.answer() == NOTHING


@pytest.mark.parametrize(
    "lines",
    [
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked, gzip"],
        ["Transfer-Encoding: , chunked"],
        ["Transfer-Encoding:"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: \x0bchunked"],
        ["X: y", " Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", "Transfer-Encoding: gzip, chunked"],
    ],
    ids=" | ".join,
)
def test_ambiguous_framing_is_refused(gateway: Gateway, lines: list[str]) -> None:
    with Raw(gateway) as raw:
        raw.send(post("/v1/classify", *lines, body=to_chunks(picture(3))) + HEALTH)
        refusal(raw.answer(), 400, "invalid-request")
        assert raw.answer() == NOTHING


def test_http_1_0_knows_no_chunks(gateway: Gateway) -> None:
    request = b"POST /v1/classify HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + to_chunks(picture(3))
    assert refusal(ask(gateway, request), 400, "invalid-request")[0] == "Transfer-Encoding"


@pytest.mark.parametrize("coding", ["chunked", "Chunked", " chunked "])
def test_chunks_are_read(gateway: Gateway, worker: Worker, coding: str) -> None:
    with Raw(gateway) as raw:
        raw.send(post("/v1/classify", f"Transfer-Encoding: {coding}", body=to_chunks(picture(3))) + HEALTH)
        assert [raw.answer().status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("version", ["0.9", "2.0"])
def test_only_versions_that_are_spoken_are_read(gateway: Gateway, version: str) -> None:
    request = HEALTH.replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    assert "HTTP/1.1" in refusal(ask(gateway, request), 400, "invalid-request")[1]


@pytest.mark.parametrize(
    "host",
    [
        "a b", "a\tb", "user@here", "user:secret@here", "here:port", "here:+80", "here:-1", "here:65536", "here:8000:8000",
        "here/path", "http://here", "here?", "here#", "[", "[::1", "::1", "[::::]", "[]", "[here]", "[::1]x", "%zz", "h\xe4r", "a\\b",
        '"here"', "<here>", "here, there",
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_broken_host_is_refused(gateway: Gateway, host: str, version: str) -> None:
    answer = ask(gateway, f"GET /health/live HTTP/{version}\r\nHost: {host}\r\n\r\n".encode("latin-1"))
    assert refusal(answer, 400, "invalid-request")[0] == "Host"


@pytest.mark.parametrize("control", [0, 1, 8, 11, 27, 127])
def test_a_host_with_a_control_character_is_refused(gateway: Gateway, control: int) -> None:
    refusal(ask(gateway, b"GET /health/live HTTP/1.1\r\nHost: he%cre\r\n\r\n" % control), 400, "invalid-request")


@pytest.mark.parametrize(
    "host",
    ["here", "here:", "here:0080", "here:65535", "my_service:8000", "a.b-c.example.", "10.0.0.1:80", "[::1]", "[::1]:8000",
     "[fe80::1%25eth0]", "[::ffff:10.0.0.1]:1", "%C3%A4.example", ""],
)  # fmt: skip
def test_a_host_is_a_name_or_an_address(gateway: Gateway, host: str) -> None:
    assert ask(gateway, f"GET /health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 200


def test_each_request_of_http_1_1_has_one_host(gateway: Gateway) -> None:
    for lines in (b"", b"Host: here\r\nHost: here\r\n", b"Host: here\r\nHost: there\r\n"):
        assert refusal(ask(gateway, b"GET /health/live HTTP/1.1\r\n" + lines + b"\r\n"), 400, "invalid-request")[0] == "Host"
    assert ask(gateway, b"GET /health/live HTTP/1.0\r\n\r\n").status == 200
    with Raw(gateway) as raw:
        assert raw.send(HEALTH).answer().status == 200
        refusal(raw.send(b"GET /health/live HTTP/1.1\r\n\r\n").answer(), 400, "invalid-request")


def test_the_host_of_an_absolute_target_goes_before_the_header() -> None:
    """RFC 9112, 3.2.2. Model control believes a page only if its origin is the host that was asked."""
    with private_valkey() as valkey, gateway_process(valkey.url, model_control="explicit") as gateway:
        answers = [
            ask(
                gateway,
                f"POST {target}/v2/repository/models/none/unload HTTP/1.1\r\nHost: {host}\r\nOrigin: http://page.example\r\n"
                "Content-Length: 0\r\n\r\n".encode(),
            ).status
            for target, host in [("", "page.example"), ("", "here"), ("http://here", "page.example"), ("http://page.example", "here")]
        ]
    allowed, foreign, *absolute = answers
    assert foreign == 403 != allowed
    assert absolute == [foreign, allowed]


@pytest.mark.parametrize("target", ["http://here/health/live", "HTTPS://here:8000/health/live?a=b", "http://[::1]/health/live"])
def test_an_absolute_target_is_read(gateway: Gateway, target: str) -> None:
    assert ask(gateway, f"GET {target} HTTP/1.1\r\nHost: there\r\n\r\n".encode()).status == 200


@pytest.mark.parametrize("target", ["http://user@here/", "http:///health/live", "ftp://here/", "http://here:99999/", "health/live"])
def test_a_target_that_names_no_host_of_ours_is_refused(gateway: Gateway, target: str) -> None:
    refusal(ask(gateway, f"GET {target} HTTP/1.1\r\nHost: here\r\n\r\n".encode()), 400, "invalid-request")


def test_an_absolute_target_without_a_path_is_the_root(gateway: Gateway) -> None:
    answers = [ask(gateway, f"GET {target} HTTP/1.1\r\nHost: here\r\n\r\n".encode()) for target in ("/?a", "http://here?a", "http://here")]
    assert len({(answer.status, answer.headers["content-type"]) for answer in answers}) == 1


def test_nothing_is_traced(gateway: Gateway) -> None:
    answer = ask(gateway, b"TRACE /v1/classify HTTP/1.1\r\nHost: here\r\nX-Secret: secret\r\n\r\n")
    assert answer.status == 405 and b"secret" not in answer.body
