"""Multipart as RFC 2046 has it: what comes before and after the parts is skipped, and one boundary divides them."""

from __future__ import annotations

import json
import socket

import pytest

from tests.support.fake_worker import Worker, picture
from tests.support.gateway_process import Gateway
from tests.support.raw_http import Answer, Raw, ask, post

DISPOSITION = 'Content-Disposition: form-data; name="image"; filename="a.png"'


def part(boundary: str, *headers: str) -> bytes:
    return "\r\n".join([f"--{boundary}", *(headers or [DISPOSITION]), "", ""]).encode() + picture(3) + b"\r\n"


def form(boundary: str = "b") -> bytes:
    return part(boundary) + f"--{boundary}--\r\n".encode()


def request(content_type: str, body: bytes) -> bytes:
    return post("/v1/classify", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", body=body)


def send(gateway: Gateway, body: bytes, content_type: str = "multipart/form-data; boundary=b") -> Answer:
    return ask(gateway, request(content_type, body))


def refusal(answer: Answer) -> tuple[str | None, str]:
    """Field and detail."""
    document = json.loads(answer.body)
    assert (answer.status, document["type"]) == (400, "urn:opsin:invalid-body"), document
    return document.get("field"), document["detail"]


@pytest.mark.parametrize(
    "preamble",
    [
        b"",
        b"\r\n",
        b"This is a message in several parts.\r\n",
        b"a - b\r\n--\r\n-- b\r\n--a\r\n",
        b"x--b\r\n",
        b"\n\r\r\n",
        bytes(100_000) + b"\r\n",
    ],
    ids=["none", "an empty line", "a text", "lines like boundaries", "a boundary within a line", "line ends", "100 kB"],
)
@pytest.mark.parametrize(
    "epilogue", [b"", b"The end.", b"--b\r\n" + DISPOSITION.encode() + b"\r\n\r\nx\r\n--b--"], ids=["", "text", "form"]
)
def test_what_surrounds_the_parts_is_skipped(gateway: Gateway, worker: Worker, preamble: bytes, epilogue: bytes) -> None:
    assert send(gateway, preamble + form() + epilogue).status == 200


def test_a_preamble_may_come_byte_by_byte(gateway: Gateway, worker: Worker) -> None:
    body = b"Two\r\n--\r\n--lines\r\n" + form("bound")
    with Raw(gateway) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.send(post("/v1/classify", "Content-Type: multipart/form-data; boundary=bound", "Transfer-Encoding: chunked"))
        for byte in body[:40]:
            raw.send(b"1\r\n%c\r\n" % byte)
        raw.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body) - 40, body[40:]))
        assert raw.answer().status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"x" * 250_000, 413), (b"x" * 250_000 + b"\r\n" + form(), 413), (form() + b"x" * 250_000, 413), (b"x" * 150_000, 400)],
    ids=["without a boundary", "before the parts", "after the parts", "below the limit"],
)
def test_what_surrounds_the_parts_counts_as_body(gateway: Gateway, body: bytes, status: int) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[at : at + 9_000] for at in range(0, len(body), 9_000)))
    lines = ("Content-Type: multipart/form-data; boundary=b", "Transfer-Encoding: chunked")
    assert ask(gateway, post("/v1/classify", *lines, body=chunks + b"0\r\n\r\n")).status == status


@pytest.mark.parametrize(
    "body",
    [form("other"), form().replace(b"\r\n", b"\n"), b"--\r\n", picture(3)],
    ids=["another boundary", "LF alone", "no name", "an image"],
)
def test_a_body_without_its_boundary_is_named(gateway: Gateway, body: bytes) -> None:
    _, detail = refusal(send(gateway, body))
    assert "--b" in detail and "CRLF" in detail


@pytest.mark.parametrize("padding", [b" ", b"\t ", b" " * 100])
def test_boundaries_may_be_padded(gateway: Gateway, worker: Worker, padding: bytes) -> None:
    assert send(gateway, form().replace(b"--b\r\n", b"--b" + padding + b"\r\n")).status == 200


@pytest.mark.parametrize(
    ("parameters", "boundary"),
    [
        ("; boundary=b", "b"),
        (";boundary=b", "b"),
        ("; Boundary=b;", "b"),
        ("; charset=utf-8 ; boundary=b ; ; x=y", "b"),
        ('; boundary="b"', "b"),
        ('; boundary="two words"', "two words"),
        (r'; boundary="a\b"', "ab"),
        ("; boundary=----=_Part_1.2/3:4?(5),'6'", "----=_Part_1.2/3:4?(5),'6'"),
        ('; x="; boundary=y"; boundary=b', "b"),
        ("; boundary=" + "b" * 70, "b" * 70),
        ("; boundaries=y; boundary=b", "b"),
    ],
)
def test_a_boundary_is_read_as_it_is_written(gateway: Gateway, worker: Worker, parameters: str, boundary: str) -> None:
    assert send(gateway, form(boundary), f"multipart/form-data{parameters}").status == 200


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        ";",
        "; boundary",
        "; boundary=",
        '; boundary=""',
        "; boundary=b; boundary=b",
        "; boundary=b; boundary=c",
        '; boundary=b; BOUNDARY="c"',
        "; boundary=b; boundary*=utf-8''c",
        "; boundary*=utf-8''b",
        "; boundary*0=b",
        "; boundary = b",
        '; boundary="b',
        '; boundary="b"c',
        "; boundary=b c",
        '; boundary="b "',
        "; boundary=b\xe4",
        "; boundary=<b>",
        "; boundary=" + "b" * 71,
    ],
)
def test_a_form_has_exactly_one_boundary(gateway: Gateway, parameters: str) -> None:
    field, detail = refusal(send(gateway, form(), f"multipart/form-data{parameters}"))
    assert field == "Content-Type" and "boundary" in detail


@pytest.mark.parametrize("second", ["multipart/form-data; boundary=c", "multipart/form-data; boundary=b", "image/png"])
def test_a_form_has_one_content_type(gateway: Gateway, second: str) -> None:
    body = form()
    lines = ["Content-Type: multipart/form-data; boundary=b", f"Content-Type: {second}", f"Content-Length: {len(body)}"]
    assert refusal(ask(gateway, post("/v1/classify", *lines, body=body)))[0] == "Content-Type"


def test_a_part_is_named_once(gateway: Gateway) -> None:
    other = DISPOSITION.replace("image", "top_k")
    assert refusal(send(gateway, part("b", DISPOSITION, other) + b"--b--\r\n"))[0] == "image"


def test_a_form_within_a_form_is_no_image(gateway: Gateway) -> None:
    within = part("b", DISPOSITION, "Content-Type: multipart/mixed; boundary=c").replace(picture(3), form("c"))
    assert send(gateway, within + b"--b--\r\n").status == 415
