"""A codec that an attacker took over can read nothing that it does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from models.media.video import ClipLimits, probe
from server.processes.sandbox_process import Sandbox
from tests.support.bundles.vit import write_null
from tests.support.images import picture
from tests.support.serve_process import serve
from tests.support.videos import clip, every

SECRETS = {
    "OPSIN_REDIS_URL": "redis://:hunter2@localhost:6379/0",
    "OPSIN_WEBHOOK_SECRET_FILE": "/run/secret",
    "OPSIN_API_KEY": "opsin_secret",
    "HOME": "/home/somebody",
}
ALLOWED = {"PATH", "LANG", "LD_LIBRARY_PATH", "OPSIN_EXTENSIONS"}
WITHOUT_CAPABILITIES = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON = 24, 19, 21, 38
for capability in (CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON):  # with which root may read everything
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def environment_of(pid: int) -> Mapping[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if line)


def is_harmless(environment: Mapping[str, str]) -> bool:
    return environment["PATH"] == os.environ["PATH"] and all(name in ALLOWED or name.startswith("OMP_") for name in environment)


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_secrets")
def test_a_decoder_of_videos_gets_none_of_our_environment() -> None:
    probe(clip(every(5, 10.0), container="matroska", codec="ffv1", pixels="bgr0"), ClipLimits())
    living = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    running = [child for child in living if "models.media.video_program" in child.cmdline()]
    assert running and all(is_harmless(environment_of(child.pid)) for child in running[-1:])


@pytest.mark.usefixtures("_secrets")
def test_a_child_that_presents_gets_none_of_our_environment() -> None:
    sandbox = Sandbox("tests.support.child_programs:work", memory_bytes=4 * 2**30, seconds=60)
    sandbox.run(b"a")
    assert sandbox.pid is not None and is_harmless(environment_of(sandbox.pid))
    sandbox.close()


def test_service_processes_hide_environment_from_same_user(tmp_path: Path) -> None:
    write_null(tmp_path)
    with serve(
        tmp_path, command=[sys.executable, "-c", WITHOUT_CAPABILITIES, "-m", "opsin", "serve"], api_key="opsin_of_a_client"
    ) as service:
        assert service.classify(picture(1)).status_code == 200
        for pid in (service.process.pid, *(pid for kind in ("gateway", "template", "worker") for pid in service.children(kind))):
            reading = f"open('/proc/{pid}/environ', 'rb').read()"
            command = [sys.executable, "-c", WITHOUT_CAPABILITIES, "-c", reading]
            read = subprocess.run(command, capture_output=True, text=True, check=False)
            assert "PermissionError" in read.stderr, psutil.Process(pid).cmdline()
        with suppress(PermissionError):  # root may read them where it has CAP_SYS_PTRACE
            for pid in (pid for kind in ("gateway", "template", "worker", "valkey-server") for pid in service.children(kind)):
                assert "opsin_of_a_client" not in Path(f"/proc/{pid}/environ").read_text(), psutil.Process(pid).cmdline()
            [queue] = service.children("valkey-server")
            assert not any(name.startswith("OPSIN_") for name in environment_of(queue))
