"""URLs of Redis, as operators write them."""

from __future__ import annotations

import contextlib
import os
import socketserver
import traceback
from collections.abc import Iterator

import pytest

from server.queue.connect import connect, parse, unsuitable
from server.queue.keys import Keyspace
from tests.support.raw_http import serving
from tests.support.redis import KEYSPACE


def test_sentinel_url_names_sentinels_master_and_credentials() -> None:
    target = parse("redis+sentinel://ops:p%40ss@one:26380,two,[::1]:26381/shard-a/3?sentinel_password=other")
    assert target.sentinels == (("one", 26380), ("two", 26379), ("::1", 26381))
    assert (target.master, target.db, target.username, target.password) == ("shard-a", 3, "ops", "p@ss")
    assert dict(target.options) == {"sentinel_password": "other"}


@pytest.mark.parametrize("url", ["redis://host:1/0", "rediss://:secret@host/1?ssl_ca_certs=/x", "unix:///run/valkey.sock?db=2"])
def test_other_urls_are_left_to_redis_py(url: str) -> None:
    target = parse(url)
    assert (target.url, target.sentinels) == (url, ())


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://host", "must start with one of"),
        ("host:6379", "must start with one of"),
        ("redis+sentinel://host:1", "host:port,host:port/MASTER/db"),
        ("redis+sentinel://host:1/shard/x", "host:port,host:port/MASTER/db"),
        ("redis+sentinel://host:port/shard", "is not host:port"),
        ("redis+sentinel://host:²/shard", "is not host:port"),
        ("redis+sentinel://host:1/shard/²", "host:port,host:port/MASTER/db"),
        ("redis://host:port/0", "[Pp]ort"),
        ("redis://host/0?protocol=3", "protocol cannot be chosen"),
        ("redis+sentinel://host:1/shard?decode_responses=true", "decode_responses cannot be chosen"),
    ],
)
def test_a_wrong_url_is_refused_with_a_sentence(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://ops:hunter2@host",
        "hunter2@host:6379",
        "redis+sentinel://:hunter2@host:port/shard",
        "redis+sentinel://:hunter2@host",
        "redis+sentinel://ops:a/hunter2@host:1/shard/x",
        "redis://ops:a/hunter2@host:port/0",
        "redis://ops:a?hunter2@host:port/0",
        "redis://:hunter2@host:port/0",
        "redis://:hunter2@host/0?protocol=3",
        "redis://host/0?passwort=hunter2",
        "redis://host/0?password=a@hunter2&protocol=3",
        "redis://:hunter2\u2100@host/0",
        "rediss://:hunter2@host/0?no_such=1",
    ],
)
def test_the_refusal_of_a_url_does_not_repeat_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="Redis URL") as refused:
        parse(url)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


@contextlib.contextmanager
def server_of_version(version: str) -> Iterator[int]:
    """Run a server that reports this version. Yields its port."""
    info = f"# Server\r\nredis_version:{version}\r\n"
    answer = f"${len(info)}\r\n{info}\r\n".encode()

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while command := self.request.recv(4096):
                none, ok = b"$-1\r\n", b"+OK\r\n" * command.count(b"*")
                self.request.sendall(answer if b"INFO" in command else none if b"{s}:cell" in command else ok)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    with serving(server):
        yield server.server_address[1]


@pytest.mark.parametrize(("version", "fits"), [("6.2.14", False), ("7.0.0", True), ("8.2.1", True), ("", True)])
def test_servers_that_are_too_old_are_unsuitable(version: str, fits: bool) -> None:
    with server_of_version(version) as port:
        assert (not unsuitable(f"redis://127.0.0.1:{port}/0", KEYSPACE)) is fits


def test_real_and_unavailable_servers_are_not_unsuitable(url: str) -> None:
    assert not unsuitable(url, KEYSPACE) and not unsuitable("redis://127.0.0.1:1/0", KEYSPACE)


def test_a_redis_belongs_to_the_first_cell(url: str) -> None:
    assert [unsuitable(url, KEYSPACE), unsuitable(url, KEYSPACE)] == ["", ""]
    other = Keyspace(cell=KEYSPACE.cell + 1)
    assert unsuitable(url, other) == f"this Redis is that of cell {KEYSPACE.cell}, and OPSIN_CELL is {other.cell}"
    if not os.environ.get("OPSIN_TEST_REDIS"):  # keys of another prefix may not be touched there
        assert unsuitable(url, Keyspace("other:", other.cell)) == ""


def test_a_blocking_read_ends_before_the_socket_times_out(url: str) -> None:
    with connect(url, blocking=1.0) as client:
        assert client.xread({KEYSPACE.name("nothing"): "$"}, block=1000) in ([], None)
