"""Heavy work in a child process: whatever happens to it, the next call is answered."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.process.child_room import ChildRoom, WorkFailed
from tests.gateway.service import eventually

MEMORY = 4 * 2**30


@pytest.fixture
async def room() -> AsyncIterator[ChildRoom]:
    room = ChildRoom("tests.process.work:work", memory_bytes=MEMORY, seconds=60)
    yield room
    await room.close()


def alive(pid: int) -> bool:
    """A child that nobody has waited for is dead, too."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_one_child_is_used_again_and_started_when_needed(room: ChildRoom) -> None:
    assert room.pid is None
    answers = await asyncio.gather(*(room.run(message) for message in (b"a", b"b" * 3_000_000, b"print")))
    pids = {answer.partition(b" ")[0] for answer in answers}
    assert pids == {str(room.pid).encode()}
    assert [len(answer.partition(b" ")[2]) for answer in answers] == [1, 3_000_000, 5]


@pytest.mark.parametrize(
    ("message", "reason"),
    [(b"die", "died of SIGSEGV"), (b"exit", "ended with code 3"), (b"raise", "ValueError: no such shape"), (b"fill", "needs more memory")],
)
async def test_what_fails_costs_one_call(room: ChildRoom, message: bytes, reason: str) -> None:
    with pytest.raises(WorkFailed, match=reason):
        await room.run(message)
    assert (await room.run(b"next")).endswith(b" next")


async def test_work_that_takes_too_long_is_ended(room: ChildRoom) -> None:
    await room.run(b"start")
    first = room.pid
    assert first is not None
    hurried = ChildRoom("tests.process.work:work", memory_bytes=MEMORY, seconds=0.5)
    with pytest.raises(WorkFailed, match=r"it took longer than 0\.5 s"):
        await hurried.run(b"sleep")
    assert hurried.pid is None


async def test_a_caller_that_leaves_takes_its_work_along(room: ChildRoom) -> None:
    await room.run(b"start")
    pid = room.pid
    assert pid is not None
    call = asyncio.create_task(room.run(b"sleep"))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not alive(pid)
    assert (await room.run(b"next")).endswith(b" next")


async def test_closing_ends_the_child(room: ChildRoom) -> None:
    await room.run(b"start")
    pid = room.pid
    assert pid is not None and alive(pid)
    await room.close()
    assert not alive(pid)


def test_a_child_ends_with_its_parent() -> None:
    """Also where the parent is killed, and the child is in the middle of its work."""
    script = (
        "import asyncio; from server.process.child_room import ChildRoom\n"
        "async def main():\n"
        f"    room = ChildRoom('tests.process.work:work', memory_bytes={MEMORY}, seconds=60)\n"
        "    await room.run(b'start'); print('pid:', room.pid, flush=True); await room.run(b'sleep')\n"
        "asyncio.run(main())"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert parent.stdout is not None
    pid = next(int(line.split()[1]) for line in parent.stdout if line.startswith("pid: "))  # after what is logged
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not alive(pid), "the child has ended")
