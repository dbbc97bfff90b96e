"""Workers that die, again and again or while they start, what they find of their predecessors, and the template that they are copies of."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from server.supervisor.child_processes import can_fork_workers
from tests.support.bundles.vit import write_null, write_tiny_vit
from tests.support.images import picture
from tests.support.serve_process import Service, serve
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
KINDS = ("gateway", "template", "valkey-server", "worker")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `bundles`, and of the `cache` of the service."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """The last test kills it."""
    write_tiny_vit(folder / "bundles")
    with serve(folder / "bundles", device="cpu", cache=folder / "cache") as running:
        assert running.url
        yield running


def test_a_restarted_worker_goes_by_what_the_last_one_learned(service: Service, folder: Path) -> None:
    def learned_files() -> list[Path]:
        assert service.classify(picture(1)).status_code == 200
        return list((folder / "cache" / "learned").glob("*.json"))

    [file] = eventually(learned_files, "what batches showed is stored", 120)
    content = json.loads(file.read_bytes())
    content["learned"] |= {"largest": 4, "seconds": {"1": 0.5, "2": 0.9, "4": 3.0}}
    file.write_text(json.dumps(content))
    kill_the_worker(service)
    assert service.classify(picture(1)).status_code == 200
    ready = eventually(lambda: service.events("bundle ready")[1:], "the new worker is ready")[0]
    assert ready["batch"] == 2


def test_no_worker_reports_to_others_that_a_graph_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime keeps an id of the machine, and what it has not sent yet, in the user's cache."""
    (tmp_path / "home").mkdir()
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "photos").symlink_to(ROOT / "bundles" / "photos")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with serve(tmp_path / "bundles", device="cpu", cache=tmp_path / "cache") as service:
        eventually(lambda: service.events("bundle ready"), "the graph is loaded")
    assert not any((tmp_path / "home").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["file", "/dev/full"])
def test_unwritable_cache_lets_service_start_and_is_logged_once(tmp_path: Path, cache: str) -> None:
    write_tiny_vit(tmp_path / "bundles", name="one")
    write_tiny_vit(tmp_path / "bundles", name="two")
    (tmp_path / "file").write_text("no folder")  # permissions would not keep root out
    with serve(tmp_path / "bundles", cache=tmp_path / cache) as service:
        assert service.classify(picture(1), model="one").status_code == 200
        warning = "cache not written: each start learns again"

        def warned() -> bool:
            assert service.classify(picture(1), model="two").status_code == 200
            return bool(service.events(warning))

        eventually(warned, "it is logged", 120)
        assert len(service.events(warning)) == 1


@pytest.mark.slow
def test_two_services_may_share_a_cache(tmp_path: Path) -> None:
    write_tiny_vit(tmp_path / "bundles")
    with (
        serve(tmp_path / "bundles", cache=tmp_path / "cache") as one,
        serve(tmp_path / "bundles", cache=tmp_path / "cache", metrics_port=19401) as other,
    ):

        def learned_files() -> list[Path]:
            assert one.classify(picture(1)).status_code == other.classify(picture(1)).status_code == 200
            return list((tmp_path / "cache" / "learned").glob("*.json"))

        [file] = eventually(learned_files, "what batches showed is stored", 120)
        assert json.loads(file.read_bytes())["v"] == 4


@pytest.mark.queue_line(9)
def test_worker_killed_while_starting_is_restarted(service: Service) -> None:
    for _ in range(3):
        kill_the_worker(service)
    assert service.classify(picture(1)).status_code == 200
    # 1, or 2 where the last test's worker has answered and was not yet known to be ready
    assert all(death["restart_in"] <= 2 for death in service.events("worker died"))


@pytest.mark.parametrize("signals", [1, 2])
def test_service_stopped_while_starting_leaves_nothing(tmp_path: Path, signals: int) -> None:
    write_null(tmp_path)
    with serve(tmp_path, copied=True) as service:
        eventually(lambda: service.children("worker") and service.children("gateway"), "its processes start")
        family = [*service.children("worker"), *service.children("gateway"), *service.children("valkey-server")]
        for _ in range(signals):
            service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
        assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_restart_backoff_is_at_most_5_s(tmp_path: Path) -> None:
    write_null(tmp_path)
    with serve(tmp_path) as service:
        assert service.url
        for _ in range(8):
            kill_the_worker(service)
        assert service.classify(picture(1)).status_code == 200
        assert [death["restart_in"] for death in service.events("worker died")] == [0.0, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_worker_copy_has_own_process_group_and_command(service: Service) -> None:
    [template], [worker] = service.children("template"), service.children("worker")
    process = psutil.Process(worker)
    assert process.ppid() == template
    assert os.getpgid(worker) == worker
    assert process.cmdline()[1:5] == ["-P", "-m", "opsin", "worker"]
    assert psutil.Process(template).num_threads() == 1


def test_a_template_that_gets_sigterm_keeps_its_copies(service: Service) -> None:
    """A service manager may send SIGTERM to all processes of a service at once."""
    [template], [worker] = service.children("template"), service.children("worker")
    os.kill(template, signal.SIGTERM)
    os.kill(worker, signal.SIGTERM)
    [stopped] = eventually(lambda: [event for event in service.events("worker stopped") if event["pid"] == worker], "it has drained")
    assert stopped["status"] == "exit code 0"
    assert service.classify(picture(1)).status_code == 200
    assert psutil.Process(service.children("worker")[0]).ppid() == template


def test_death_of_template_ends_copies_and_executes_worker(service: Service) -> None:
    [template], [worker] = service.children("template"), service.children("worker")
    kill(template, worker)
    assert service.classify(picture(1)).status_code == 200
    [executed] = service.children("worker")
    assert executed != worker and psutil.Process(executed).ppid() == service.process.pid
    new = eventually(lambda: service.children("template"), "there is a new template")[0]
    eventually(lambda: service.events("template ready")[1:], "it is ready")
    kill(executed)
    assert service.classify(picture(1)).status_code == 200
    [copy] = service.children("worker")
    assert psutil.Process(copy).ppid() == new


def test_nothing_is_left_where_the_supervisor_is_killed(service: Service) -> None:
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert {child.pid for child in family} >= {pid for kind in KINDS for pid in service.children(kind)}
    service.process.kill()
    eventually(lambda: not any(map(runs, family)), "all have ended")


def test_a_gpu_is_no_part_of_a_copy() -> None:
    assert can_fork_workers("cpu")
    assert not can_fork_workers("cuda")
    assert not can_fork_workers("cuda:1")
    assert not can_fork_workers("cuda:all")


def kill_the_worker(service: Service) -> None:
    """Once there is one: after a death it may be missing for a while."""
    [worker] = eventually(lambda: service.children("worker"), "there is a worker")
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: worker not in service.children("worker"), "it has ended")


def kill(pid: int, *others: int) -> None:
    """Kill one, and wait until it and those that die with it have ended: until then, they may still answer."""
    dying = [psutil.Process(each) for each in (pid, *others)]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(runs, dying)), "all have ended")


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # it may have no parent left that reaps it
    except psutil.NoSuchProcess:
        return False
