"""Ctrl-C ends a command wherever it strikes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import psutil
import pytest

from opsin.cli.shared.interrupts import pending_interrupt
from opsin.cli.shared.service_calls import wait_with_progress
from opsin.errors import Unreachable
from tests.support.bundles.vit import write_null
from tests.support.fake_servers import Answer, Request, serve_script
from tests.support.images import picture
from tests.support.waiting import eventually

INTERRUPTED = "opsin: interrupted; job j-1 may still be running: see `opsin jobs show j-1`, or cancel it with `opsin jobs cancel j-1`\n"

SERVE = """
import sys, time
from pathlib import Path
from opsin.cli.shared.temporary_service import temporary_service

with temporary_service(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(600)
"""


EARLY = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

from opsin.cli import main
sys.meta_path.insert(0, Interrupting())
main()
"""


SHORT = """
from opsin.cli import app

@app.app.command()
def short():
    raise EOFError("the file ends early")

app.main()
"""


class Unlucky:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))  # the handler runs here, and Python ignores what a finalizer raises


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_in_finalizer_is_raised_at_next_check() -> None:
    with pending_interrupt() as check:
        check()
        Unlucky()
        with pytest.raises(KeyboardInterrupt):
            check()


def test_interrupt_during_imports_ends_without_traceback() -> None:
    ended = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=240, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_end_of_file_is_not_an_interrupt() -> None:
    ended = subprocess.run([sys.executable, "-c", SHORT, "short"], capture_output=True, text=True, timeout=240, check=False)
    assert (ended.returncode, ended.stderr.strip()) == (1, "opsin: the file ends early")  # click prints a blank line first


def test_other_interrupt_is_raised_at_once_and_handler_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), pending_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))
    assert signal.getsignal(signal.SIGINT) is before


def is_answered(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/live", timeout=1).is_success  # the socket is the supervisor's: it may take what no one reads
    except httpx2.TransportError:
        return False


def test_two_interrupts_leave_no_service_behind(tmp_path: Path) -> None:
    write_null(tmp_path, milliseconds=50, steps=(5000,), width=8)
    program = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        family = psutil.Process(program.pid).children(recursive=True)
        httpx2.post(f"{url}/v1/classify", content=picture(1), headers={"Prefer": "respond-async"}, timeout=60).raise_for_status()
        eventually(lambda: httpx2.get(f"{url}/v1/status", timeout=60).json()["jobs"]["running"] == 1, "work that takes long")
        program.send_signal(signal.SIGINT)
        eventually(lambda: not is_answered(url), "the gateway has gone, the worker has not")
        program.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs([psutil.Process(program.pid), *family], timeout=60)
        assert alive == []
    finally:
        program.kill()


def test_interrupt_ends_command_if_job_cannot_be_cancelled(capsys: pytest.CaptureFixture[str]) -> None:
    class Job:
        id = "j-1"
        cancelled = False

        def result(self) -> None:
            raise KeyboardInterrupt

        def cancel(self) -> None:
            self.cancelled = True
            raise Unreachable("the service is unavailable")

    job = Job()
    with pytest.raises(KeyboardInterrupt):
        wait_with_progress(job, "Filling")  # type: ignore[arg-type]
    assert job.cancelled
    assert capsys.readouterr().err == INTERRUPTED


def test_second_interrupt_ends_hanging_command_and_names_job(tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(b"\x89PNG")
    released, requested = threading.Event(), list[Request]()

    def answer(request: Request) -> Answer:
        requested.append(request)
        if not request.path.startswith("/v1/inpaint"):
            released.wait(240)
        return Answer(202, {"id": "j-1"})

    with serve_script(answer) as service:
        command = [sys.executable, "-m", "opsin", "inpaint", file, "--mask", "center", "--url", service.url]
        program = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            for count in (2, 3):  # its state is asked for, then it is cancelled
                eventually(lambda count=count: len(requested) == count, "the service is asked")  # type: ignore[misc]
                program.send_signal(signal.SIGINT)
            assert (program.wait(60), *program.communicate()) == (130, "", INTERRUPTED)
        finally:
            released.set()
            program.kill()


@pytest.mark.parametrize("command", [["classify"], ["zero-shot", "--label", "cat"], ["embed", "-o", "vectors.npz", "--model", "a"]])
def test_an_interrupt_ends_a_command_whose_requests_hang(tmp_path: Path, command: list[str]) -> None:
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file in files:
        file.write_bytes(b"\x89PNG")
    released, requested = threading.Event(), list[Request]()
    model = {"name": "a", "version": "1", "task": "embed", "state": "ready", "digest": "0"}

    def answer(request: Request) -> Answer:
        requested.append(request)
        if "/models" not in request.path:
            released.wait(240)
        return Answer(body=model)

    with serve_script(answer) as service:
        program = subprocess.Popen(
            [sys.executable, "-m", "opsin", *command, *files, "--url", service.url], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        try:
            eventually(lambda: len(requested) >= len(files), "the service is asked")
            program.send_signal(signal.SIGINT)
            assert (program.wait(60), program.communicate()[1].strip()) == (130, "")
        finally:
            released.set()
            program.kill()
