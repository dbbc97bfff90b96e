"""The file of API keys: what its lines mean, and what happens while it changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.gateway.auth.key_file import ApiKey, format_line, hash_key, new_key, parse_key_file, rewrite, validated_key
from server.gateway.auth.middleware import KeyRing, RateLimiter
from server.http.problems import Problem
from server.http.requests import Head

ONE, TWO = hash_key(b"one"), hash_key(b"two")
HASH, OTHER_HASH = f"sha256:{ONE.hex()}", f"sha256:{TWO.hex()}"


def lets_in(ring: KeyRing, key: bytes) -> bool:
    try:
        ring.find(Head("/", b"", {b"x-api-key": [key]}))
    except Problem as problem:
        assert problem.kind.status == 401
        return False
    return True


def test_a_line_says_what_the_command_wrote() -> None:
    key = ApiKey("alice.2_b-c", 5, 0.25, "normal", metrics=True, admin=True)
    assert format_line(key, ONE) == f"alice.2_b-c {HASH} max_items=5 rate=0.25 priority=normal metrics admin"
    for written in (key, ApiKey("a"), ApiKey("a", rate=1e-3), ApiKey("a", rate=999_999_999.0), ApiKey("a", priority="low")):
        assert parse_key_file(format_line(written, ONE).encode()).keys == {ONE: written}


@pytest.mark.parametrize("name", ["", "1", "10.0.0.1", "a b", "a:b", "ä", "a" * 65, "a\n", "#a", "-a"])
def test_a_name_that_cannot_be_read_again_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        validated_key(ApiKey(name))


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        f"alice {ONE.hex()}",
        f"alice {HASH}0",
        f"alice {HASH.upper()}",
        f"al:ice {HASH}",
        f"10.0.0.7 {HASH}",
        f"{HASH} alice",
        f"alice {HASH} max_items",
        f"alice {HASH} max_items=0",
        f"alice {HASH} max_items=-1",
        f"alice {HASH} max_items=\u0661",
        f"alice {HASH} max_items=1e3",
        f"alice {HASH} rate=0",
        f"alice {HASH} rate=inf",
        f"alice {HASH} rate=nan",
        f"alice {HASH} priority=urgent",
        f"alice {HASH} metrics=1",
        f"alice {HASH} admin admin",
        f"alice {HASH} name=bob",
        f"alice {HASH} {OTHER_HASH}",
        f"alice {HASH}bob {OTHER_HASH}",
        f"alic\xff {HASH}",
    ],
)
def test_invalid_line_admits_no_client_and_is_reported_by_number(line: str) -> None:
    lines = parse_key_file(f"# keys\n\n{line}\nbob {OTHER_HASH}\n".encode("latin-1" if "\xff" in line else "utf-8"))
    assert lines.keys == {TWO: ApiKey("bob")} and list(lines.invalid_lines) == [3]
    assert not any(word in lines.invalid_lines[3] for word in line.split() if word not in ("admin", "max_items"))


def test_lines_of_one_name_are_a_rotation_with_equal_limits() -> None:
    lines = parse_key_file(f"alice {HASH} rate=5\r\nalice {OTHER_HASH} rate=5\r\n".encode())
    assert set(lines.keys.values()) == {ApiKey("alice", rate=5)} and not lines.invalid_lines
    assert list(parse_key_file(f"alice {HASH} rate=5\nalice {OTHER_HASH}".encode()).invalid_lines) == [2]
    assert list(parse_key_file(f"alice {HASH}\nbob {HASH}".encode()).invalid_lines) == [2]


def test_a_key_has_256_random_bits() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert all(len(bytes.fromhex(new_key().removeprefix("opsin_"))) == 32 for _ in range(3))


async def test_the_last_good_file_counts_while_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice {HASH}\n")
    ring = KeyRing(file)
    for spoil, restore in ((lambda: None, lambda: None), (file.mkdir, file.rmdir), (lambda: os.mkfifo(file), file.unlink)):
        file.unlink(missing_ok=True)
        spoil()
        await ring.reload()
        assert lets_in(ring, b"one")
        restore()
    file.write_text(f"bob {OTHER_HASH}\n")
    await ring.reload()
    assert (lets_in(ring, b"one"), lets_in(ring, b"two"), ring.has("alice"), ring.has("bob")) == (False, True, False, True)
    file.write_text("")
    await ring.reload()
    assert not lets_in(ring, b"two")


async def test_key_file_is_followed_through_links_of_mounted_secret(tmp_path: Path) -> None:
    """Kubernetes swaps a link to a folder."""
    for name, line in (("before", f"alice {HASH}"), ("after", f"bob {OTHER_HASH}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(line)
    (tmp_path / "data").symlink_to("before")
    (tmp_path / "keys").symlink_to("data/keys")
    ring = KeyRing(tmp_path / "keys")
    (tmp_path / "new").symlink_to("after")
    (tmp_path / "new").rename(tmp_path / "data")
    await ring.reload()
    assert (lets_in(ring, b"one"), lets_in(ring, b"two")) == (False, True)


async def test_a_change_that_leaves_size_and_time_as_they_were_counts(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice {HASH}\n")
    ring, before = KeyRing(file), file.stat()
    file.write_text(f"alice {OTHER_HASH}\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    await ring.reload()
    assert (lets_in(ring, b"one"), lets_in(ring, b"two")) == (False, True)


def test_a_file_is_rewritten_in_place(tmp_path: Path) -> None:
    """A mounted file is known by its inode, and its link belongs to another program."""
    file, link = tmp_path / "keys", tmp_path / "link"
    file.write_bytes(b"one\ntwo\n")
    link.symlink_to(file)
    before = file.stat().st_ino
    assert not rewrite(link, b"two\n", b"")  # another program has added a line before it
    assert rewrite(link, b"one\ntwo\n", b"two\n")
    assert (file.read_bytes(), file.stat().st_ino, link.is_symlink()) == (b"two\n", before, True)


def count_allowed(rates: RateLimiter, key: ApiKey, seconds: float, each: float) -> int:
    """How many are let through of requests that come so often."""
    count = 0
    for number in range(int(seconds / each)):
        try:
            rates.take(key, number * each)
        except Problem as problem:
            assert (problem.kind.status, problem.kind.slug) == (429, "key-share") and (problem.retry_after or 0) >= 1
        else:
            count += 1
    return count


def test_rate_allows_burst_of_a_second_then_the_rate() -> None:
    assert count_allowed(RateLimiter(lambda: 1), ApiKey("a", rate=50.0), 30.0, 0.001) == pytest.approx(50 + 1500, abs=1)
    assert count_allowed(RateLimiter(lambda: 2), ApiKey("a", rate=50.0), 30.0, 0.001) == pytest.approx(25 + 750, abs=1)
    assert count_allowed(RateLimiter(lambda: 4), ApiKey("a", rate=0.4), 100.0, 0.5) == pytest.approx(1 + 10, abs=1)
    assert count_allowed(RateLimiter(lambda: 1), ApiKey("a"), 10.0, 0.001) == 10_000


def test_keys_of_one_name_share_its_rate() -> None:
    rates, key = RateLimiter(lambda: 1), ApiKey("a", rate=1.0)
    rates.take(key, 0.0)
    rates.take(ApiKey("b", rate=1.0), 0.0)
    with pytest.raises(Problem):
        rates.take(ApiKey("a", rate=1.0), 0.5)
    rates.take(key, 1.0)
