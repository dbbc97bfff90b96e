"""Workers as copies of a process that has imported what they need."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from server.supervisor.children import copies_serve
from tests.harness.bundles import write_tiny_vit
from tests.harness.pictures import picture
from tests.harness.service import Service, serve
from tests.harness.waiting import eventually

KINDS = ("gateway", "template", "valkey-server", "worker")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The last test kills it."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_tiny_vit(bundles)
    with serve(bundles, device="cpu") as running:
        assert running.url
        yield running


def test_a_worker_is_a_copy_with_a_process_group_and_a_command_of_its_own(service: Service) -> None:
    [template], [worker] = service.children("template"), service.children("worker")
    process = psutil.Process(worker)
    assert process.ppid() == template
    assert os.getpgid(worker) == worker
    assert process.cmdline()[1:5] == ["-P", "-m", "opsin", "worker"]
    assert psutil.Process(template).num_threads() == 1


def test_where_the_template_dies_its_copies_die_too_and_a_worker_is_executed(service: Service) -> None:
    [template], [worker] = service.children("template"), service.children("worker")
    kill(template, worker)
    assert service.classify(picture(1)).status_code == 200
    [executed] = service.children("worker")
    assert executed != worker and psutil.Process(executed).ppid() == service.process.pid
    new = eventually(lambda: service.children("template"), "there is a new template")[0]
    eventually(lambda: service.events("template stands")[1:], "it stands")
    kill(executed)
    assert service.classify(picture(1)).status_code == 200
    [copy] = service.children("worker")
    assert psutil.Process(copy).ppid() == new


def test_nothing_is_left_where_the_supervisor_is_killed(service: Service) -> None:
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert {child.pid for child in family} >= {pid for kind in KINDS for pid in service.children(kind)}
    service.process.kill()
    eventually(lambda: not any(map(runs, family)), "all have ended")


def kill(pid: int, *others: int) -> None:
    """Kill one, and wait until it and those that die with it have ended: until then, they may still answer."""
    dying = [psutil.Process(each) for each in (pid, *others)]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(runs, dying)), "all have ended")


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may be left who buries it
    except psutil.NoSuchProcess:
        return False


def test_a_gpu_is_no_part_of_a_copy() -> None:
    assert copies_serve("cpu")
    assert not copies_serve("cuda")
    assert not copies_serve("cuda:1")
