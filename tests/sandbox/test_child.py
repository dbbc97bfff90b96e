"""Heavy work in a child process: whatever happens to it, the next call is answered."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from models.processes.confined_process import CancelScope, ConfinedProcess
from server.gateway.fair_executor import FairExecutor
from server.processes.sandbox_process import Sandbox, SandboxError
from tests.support.processes import alive, takes_work
from tests.support.waiting import eventually, eventually_async

MEMORY = 4 * 2**30


WORK = "tests.support.child_programs:work"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(WORK, memory_bytes=MEMORY, seconds=60)
    yield sandbox
    sandbox.close()


async def test_one_child_is_used_again_and_started_when_needed(sandbox: Sandbox) -> None:
    assert sandbox.pid is None
    answers = await asyncio.gather(*(asyncio.to_thread(sandbox.run, message) for message in (b"a", b"b" * 3_000_000, b"print")))
    pids = {answer.partition(b" ")[0] for answer in answers}
    assert pids == {str(sandbox.pid).encode()}
    assert [len(answer.partition(b" ")[2]) for answer in answers] == [1, 3_000_000, 5]


def test_a_child_is_used_again_hundreds_of_times(sandbox: Sandbox) -> None:
    assert len({sandbox.run(b"a") for _ in range(600)}) == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"die", "died of SIGSEGV"),
        (b"exit", "ended with code 3"),
        (b"raise", "ValueError: no such shape"),
        (b"fill", "needs more memory"),
        (b"quote", "ValueError: xxx"),
        (b"close", "died of SIGKILL"),
    ],
)
def test_what_fails_costs_one_call(sandbox: Sandbox, message: bytes, reason: str) -> None:
    with pytest.raises(SandboxError, match=reason):
        sandbox.run(message)
    assert sandbox.run(b"next").endswith(b" next")


def test_a_child_that_died_between_two_calls_costs_none(sandbox: Sandbox) -> None:
    sandbox.run(b"start")
    first = sandbox.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not alive(first), "the child has ended")
    assert sandbox.run(b"next").endswith(b" next") and sandbox.pid != first


def test_work_that_takes_too_long_is_ended() -> None:
    hurried = Sandbox(WORK, memory_bytes=MEMORY, seconds=5)
    hurried.run(b"start")
    pid = hurried.pid
    assert pid is not None
    with pytest.raises(SandboxError, match=r"it took longer than 5 s"):
        hurried.run(b"sleep")
    assert hurried.pid is None and not alive(pid)


async def test_a_caller_that_leaves_takes_its_work_along(sandbox: Sandbox) -> None:
    turns = FairExecutor(1, max_concurrent=1)
    await turns.run("a", partial(sandbox.run, b"start"))
    pid = sandbox.pid
    assert pid is not None
    busy = takes_work(pid)
    call = asyncio.create_task(turns.run("a", partial(sandbox.run, b"sleep")))
    await eventually_async(busy, "the child is at work")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await turns.run("b", partial(sandbox.run, b"next"))).endswith(b" next")
    assert not alive(pid)
    turns.close()


def test_closing_ends_the_child(sandbox: Sandbox) -> None:
    sandbox.run(b"start")
    pid = sandbox.pid
    assert pid is not None and alive(pid)
    sandbox.close()
    assert not alive(pid)


async def test_closing_ends_the_child_in_the_middle_of_its_work(sandbox: Sandbox) -> None:
    sandbox.run(b"start")
    pid = sandbox.pid
    assert pid is not None
    busy = takes_work(pid)
    call = asyncio.create_task(asyncio.to_thread(sandbox.run, b"sleep"))
    await eventually_async(busy, "the child is at work")
    await asyncio.to_thread(sandbox.close)
    assert not alive(pid)
    with pytest.raises(SandboxError, match="died of SIGKILL"):
        await call


def test_a_child_ends_with_its_parent() -> None:
    """Also where the parent is killed, and the child is in the middle of its work."""
    script = (
        "from server.processes.sandbox_process import Sandbox\n"
        f"sandbox = Sandbox('{WORK}', memory_bytes={MEMORY}, seconds=60)\n"
        "sandbox.run(b'start'); print('pid:', sandbox.pid, flush=True); sandbox.run(b'sleep')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert parent.stdout is not None
    pid = next(int(line.split()[1]) for line in parent.stdout if line.startswith("pid: "))  # after what is logged
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not alive(pid), "the child has ended")


def test_a_gateway_with_a_thousand_open_files_can_ask(sandbox: Sandbox) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("so many files may not be opened here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert sandbox.run(b"a").endswith(b" a")
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_idle_child_keeps_no_message(sandbox: Sandbox) -> None:
    sandbox.run(b"a" * 3_000_000)
    assert Path(f"/proc/{sandbox.pid}/fd/0").stat().st_size == 0


def test_caller_after_an_abandoned_call_is_answered(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call was cancelled after the last byte of its answer, just before its end would have left the child alone."""
    leave, cancelled = ConfinedProcess.leave, CancelScope()

    def late(child: ConfinedProcess) -> bool:
        if child.pid == sandbox.pid:  # others, which are no longer referenced, may be closed at the same time
            cancelled.end()
        return leave(child)

    with monkeypatch.context() as patch, cancelled:
        patch.setattr(ConfinedProcess, "leave", late)
        sandbox.run(b"a" * 1000)
    assert sandbox.run(b"next").endswith(b" next")


def test_an_endless_loop_ends_even_if_its_parent_is_gone(sandbox: Sandbox) -> None:
    sandbox.run(b"a")
    soft, _ = resource.prlimit(sandbox.pid or 0, resource.RLIMIT_CPU)
    assert 60 <= soft < 200
