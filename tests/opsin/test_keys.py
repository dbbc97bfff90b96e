"""`opsin keys`, and how a service starts with a file of keys or with variables that may have been meant to name one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from opsin import AsyncClient, Client, OpsinError
from tests.support.fake_servers import Answer, serve_script
from tests.support.processes import opsin


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two keys of alice and one of bob, and a line that is none."""
    lines = [opsin("keys", "new", name, *limits).stdout.lstrip() for name, *limits in (("alice",), ("bob", "--rate", "2.5"), ("alice",))]
    path = tmp_path / "keys"
    path.write_text("".join(["# keys\n", *lines]))
    return path


def test_a_new_key_is_on_stderr_once_and_its_line_on_stdout() -> None:
    limits = ("--max-items", "64", "--rate", "20", "--priority", "normal", "--metrics", "--admin")
    made = opsin("keys", "new", "alice", *limits)
    key = made.stderr.strip()
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert made.stdout == f"\nalice sha256:{digest} max_items=64 rate=20 priority=normal metrics admin\n"
    assert made.returncode == 0 and key not in made.stdout


def test_a_new_line_is_not_glued_to_a_last_one_without_an_end(file: Path) -> None:
    file.write_text(file.read_text().rstrip() + opsin("keys", "new", "carol").stdout)
    listed = opsin("keys", "list", "--file", file)
    assert (listed.returncode, [row.split()[1] for row in listed.stdout.splitlines()[1:]]) == (0, ["alice", "alice", "bob", "carol"])


@pytest.mark.parametrize("arguments", [("a b",), ("10.0.0.1",), ("alice", "--priority", "urgent"), ("alice", "--max-items", "0")])
def test_what_could_not_be_read_again_is_refused(arguments: tuple[str, ...]) -> None:
    ended = opsin("keys", "new", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1 and "opsin_" not in ended.stderr


def test_keys_are_listed_by_name_and_bad_lines_by_number(file: Path) -> None:
    listed = opsin("keys", "list", "--file", file)
    assert listed.returncode == 0
    assert [row.split()[:2] for row in listed.stdout.splitlines()[1:]] == [["2", "alice"], ["4", "alice"], ["3", "bob"]]
    file.write_text(f"{file.read_text()}mallory opsin_secret\n")
    listed = opsin("keys", "list", OPSIN_API_KEYS_FILE=str(file))
    assert listed.returncode == 1 and "line 5 is ignored" in listed.stderr
    assert "secret" not in listed.stdout + listed.stderr and "bob" in listed.stdout


def test_keys_are_revoked_in_place_all_of_a_name_or_one(file: Path) -> None:
    before, inode = file.read_text().splitlines(), file.stat().st_ino
    digest = before[3].split()[1].removeprefix("sha256:")
    assert opsin("keys", "revoke", "alice", "--sha256", digest[:12], "--file", file).returncode == 0
    assert (file.read_text().splitlines(), file.stat().st_ino) == (before[:3], inode)
    assert opsin("keys", "revoke", "alice", "--file", file).stdout == "1 key of alice revoked\n"
    assert file.read_text().splitlines() == [before[0], before[2]]
    again = opsin("keys", "revoke", "alice", "--file", file)
    assert again.returncode == 1 and "names in it: bob" in again.stderr


def test_revoked_key_is_not_admitted_by_formerly_bad_lines(tmp_path: Path) -> None:
    hashes = [f"sha256:{digit * 64}" for digit in "ab"]
    lines = [
        f"alice {hashes[0]} max_items=1",
        f"alice {hashes[0]}",
        f"bob {hashes[0]}",
        f"# alice {hashes[0]}",
        f"alice {hashes[1]} rate=1",
    ]
    for extra, left in (((), lines[3:4]), (("--sha256", "a" * 12), lines[3:])):
        file = tmp_path / "keys"
        file.write_text("".join(f"{line}\n" for line in lines))
        assert opsin("keys", "revoke", "alice", *extra, "--file", file).returncode == 0
        assert file.read_text().splitlines() == left


def test_a_file_that_cannot_be_read_is_reported_in_one_line(tmp_path: Path) -> None:
    for command in (("keys", "list", "--file", tmp_path / "none"), ("keys", "revoke", "alice", "--file", tmp_path)):
        ended = opsin(*command)
        assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1 and "cannot be read" in ended.stderr


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_a_service_whose_keys_cannot_be_read_does_not_start(command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for missing in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        ended = opsin(command, OPSIN_API_KEYS_FILE=str(missing), OPSIN_REDIS_URL="redis://127.0.0.1:1/0")
        assert ended.returncode == 2 and f"{missing} cannot be read" in ended.stderr


@pytest.mark.parametrize("command", ["serve", "gateway", "worker"])
@pytest.mark.parametrize(
    "name", ["OPSIN_API_KEY_FILE", "OPSIN_API_KEYS", "opsin_api_keys_files", "OPSIN_APIKEYS_FILE", "OPSIN_API_KEYS_FILE__A"]
)
def test_a_typo_does_not_open_a_service(command: str, name: str) -> None:
    ended = opsin(command, **{name: "/run/keys", "OPSIN_REDIS_URL": "redis://127.0.0.1:1/0"})
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1) and name in ended.stderr and "OPSIN_API_KEYS_FILE" in ended.stderr


def test_a_file_in_the_place_of_a_key_does_not_open_a_service() -> None:
    ended = opsin("serve", OPSIN_API_KEY="/run/keys")
    assert ended.returncode == 2 and "OPSIN_API_KEYS_FILE" in ended.stderr and "/run/keys" not in ended.stderr


def test_other_unknown_variables_are_reported(tmp_path: Path) -> None:
    taken = {
        "OPSIN_HOST": "203.0.113.1",
        "OPSIN_MAX_PICTURES": "1",
        "OPSIN_PORT__A": "1",
        "OPSIN_DEFAULT_MODELS__CLASSIFY": "flags",
        "OPSIN_API_KEY": "opsin_x",
    }
    ended = opsin("serve", **taken)
    assert ended.returncode == 2
    [answer] = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert (answer["level"], answer["variables"]) == ("warning", ["OPSIN_MAX_PICTURES", "OPSIN_PORT__A"]) and "opsin_x" not in ended.stderr


def test_the_client_sends_its_key_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_script([Answer()]) as service:
        monkeypatch.setenv("OPSIN_API_KEY", "opsin_environment\n")
        for extra in (
            {},
            {"api_key": "opsin_given"},
            {"headers": {"x-api-key": "opsin_own", "authorization": "Basic eA=="}},
            {"api_key": ""},
        ):
            with Client(service.url, **extra) as client:
                client.classify(b"picture")
        monkeypatch.delenv("OPSIN_API_KEY")
        with Client(service.url) as client:
            client.classify(b"picture")
    sent = [request.headers.get_all("X-API-Key") for request in service.requests]
    assert sent == [["opsin_environment"], ["opsin_given"], ["opsin_own"], None, None]


def test_a_proxy_is_sent_its_password_with_the_key() -> None:
    with serve_script([Answer()]) as service, Client(service.url.replace("://", "://user:secret@"), api_key="opsin_given") as client:
        client.classify(b"picture")
    headers = service.requests[0].headers
    assert (headers["X-API-Key"], headers["Authorization"].split()[0]) == ("opsin_given", "Basic")


async def test_the_asynchronous_client_does_too() -> None:
    with serve_script([Answer()]) as service:
        async with AsyncClient(service.url, api_key="opsin_given") as client:
            await client.classify(b"picture")
    assert service.requests[0].headers["X-API-Key"] == "opsin_given"


@pytest.mark.parametrize("key", ["opsin_a b", "opsin_\u00e4", "opsin_a\nX: b"])
def test_what_is_no_key_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(OpsinError, match="not an API key of Opsin") as refused:
        Client("http://127.0.0.1:1", api_key=key)
    assert key not in str(refused.value)


def test_an_invalid_key_is_an_error_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    for command in (("classify", tmp_path / "a.png"), ("batch", "classify", tmp_path, "-o", tmp_path / "out"), ("jobs", "show", "j-1")):
        ended = opsin(*command, OPSIN_API_KEY="opsin_a b")
        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert "OPSIN_API_KEY" in ended.stderr and "a b" not in ended.stderr
