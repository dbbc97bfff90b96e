"""The private Valkey: private, volatile, and never left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from server.queue.connect import connect
from server.supervisor import private_valkey
from server.supervisor.private_valkey import PrivateValkey, ValkeyUnavailable
from tests.support.processes import alive
from tests.support.waiting import eventually


def test_valkey_listens_on_private_socket_and_keeps_nothing(valkey: PrivateValkey, url: str) -> None:
    folder = valkey.socket.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with connect(url) as client:
        settings = client.config_get("*")
    assert [settings[name] for name in ("port", "save", "appendonly", "maxmemory-policy")] == ["0", "", "no", "noeviction"]
    assert os.getsid(valkey.process.pid) != os.getsid(0)


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "from server.supervisor.private_valkey import PrivateValkey; server = PrivateValkey(); server.start();"
        "print(server.process.pid, server.url, flush=True); input()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what it leaves behind goes with the test
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    with connect(url) as client:
        assert client.ping()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        eventually(lambda: not alive(int(pid)), "the server ends with its parent")


def test_it_starts_again_under_the_same_url_and_leaves_no_folder() -> None:
    server = PrivateValkey()
    server.start()
    with connect(server.url) as client:
        client.set("x", 1)
        server.process.kill()
        server.process.wait()
        server.start()
        assert client.get("x") is None
    server.stop()
    assert server.process.poll() is not None
    assert not server.socket.parent.exists()


def test_without_any_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(private_valkey.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValkeyUnavailable, match=r"apt install valkey-server.*OPSIN_REDIS_URL"):
        PrivateValkey().start()


def test_a_server_on_the_path_goes_before_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = tmp_path / "redis-server"
    server.symlink_to(private_valkey.find_server())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert private_valkey.find_server() == str(server)


def test_a_server_that_does_not_start_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho 'Fatal: no luck today' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValkeyUnavailable, match="no luck today"):
        PrivateValkey().start()
