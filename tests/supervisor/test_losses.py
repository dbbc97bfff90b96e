"""A bundle that ends its worker while it is loaded takes no other bundle with it for long."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx2
import pytest

from server.processes.supervisor_protocol import LOADING_FILE_VARIABLE, REFUSED_BUNDLES_VARIABLE
from server.supervisor import child_processes
from server.supervisor.child_processes import LoadCrashTracker
from tests.support.bundles.vit import write_null, write_tiny_vit
from tests.support.images import picture
from tests.support.serve_process import serve
from tests.support.waiting import eventually


def test_bundle_killing_two_workers_is_refused_until_changed(tmp_path: Path) -> None:
    write_tiny_vit(tmp_path)
    deadly = write_null(tmp_path, "deadly", milliseconds=4_000)  # its first batch takes as long: the test is its fault
    with serve(tmp_path, copied=True, default_models='{"classify": "tiny"}') as service:
        [listening] = eventually(lambda: service.events("listening"), "there is a gateway")
        url = f"http://127.0.0.1:{listening['address'][1]}/v1/classify"
        killed: set[int] = set()
        while not service.events("bundle refused") and len(killed) < 6:
            [worker] = eventually(lambda: set(service.children("worker")) - killed, "there is a worker")
            assert httpx2.post(url, content=picture(1), timeout=60).status_code == 200
            if not service.events("bundle refused"):  # so it is being loaded, or will be in a moment
                os.kill(worker, signal.SIGSEGV)
                killed.add(worker)
        assert 2 <= len(killed) < 6
        assert service.url
        assert any("bundles tiny@1; refused: deadly@1" in line for line in service.lines)
        os.utime(deadly.path / "bundle.json")
        eventually(lambda: [event for event in service.events("bundle ready") if event["bundle"] == "deadly@1"], "it is loaded")


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the kernel has killed for memory; tests append."""
    kills = [0]
    monkeypatch.setattr(child_processes, "oom_kills", lambda: kills[-1])
    return kills


def die(of: LoadCrashTracker, worker: int, content: str, status: int) -> str:
    """Record the exit of a worker while it loads; return the bundles that the next one must not load."""
    Path(of.environment(worker)[LOADING_FILE_VARIABLE]).write_text(content)
    of.record_exit(worker, status)
    return of.environment(worker)[REFUSED_BUNDLES_VARIABLE]


def test_two_deaths_are_counted_whichever_workers_died(tmp_path: Path, counted: list[int]) -> None:
    of = LoadCrashTracker(tmp_path)
    assert die(of, 0, "one@1:abc:1", -signal.SIGSEGV) == ""
    assert die(of, 0, "", -signal.SIGSEGV) == "", "it loaded nothing"
    assert die(of, 0, "one@1:abc:2", 1) == "", "its files had changed"
    assert die(of, 1, "one@1:abc:1", 1) == "one@1:abc:1"


def test_external_kill_blames_no_bundle_unless_memory_ran_out(tmp_path: Path, counted: list[int]) -> None:
    of = LoadCrashTracker(tmp_path)
    for _ in range(3):
        assert die(of, 0, "one@1:abc:1", -signal.SIGKILL) == ""
    for kills in (1, 2):
        counted.append(kills)
        refused = die(of, 0, "one@1:abc:1", -signal.SIGKILL)
    assert refused == "one@1:abc:1"
