"""A room in which heavy or dangerous work runs: a child process, started when it is first needed and used again.

What happens there costs the request that asked for it, never the service: the child has bounds on memory and time, and whatever ends it,
the next call starts another one.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

from models.media import confined
from server.process.tied import tied_to_parent
from server.telemetry import logs

LENGTH = 8
"""Bytes, big-endian, before each message."""
DONE, RAISED = b"\0", b"\1"
"""First byte of an answer: the result follows, or what was raised."""
GRACE = 5.0
"""Seconds that a dying child may take."""

log = logs.get(__name__)


class WorkFailed(Exception):
    """The work raised, took too long, or ended its process; the message says which."""


class ChildRoom:
    """Runs one function, one call at a time, for one event loop. The process that starts a child takes it along when it ends."""

    def __init__(self, work: str, *, memory_bytes: int, seconds: float) -> None:
        """work: `package.module:function`, from bytes to bytes. memory_bytes: of the child's address space. seconds: of one call."""
        self._work = work
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the child; None while there is none."""
        return None if self._process is None else self._process.pid

    async def run(self, message: bytes) -> bytes:
        """What the function makes of it. Raises WorkFailed. A caller that is cancelled takes the child along."""
        async with self._turn:
            process = await self._living()
            try:
                async with asyncio.timeout(self._seconds):
                    answer = await _exchange(process, message)
            except TimeoutError:
                await self._end()
                raise WorkFailed(f"it took longer than {self._seconds:g} s") from None
            except (asyncio.IncompleteReadError, ConnectionError):
                with suppress(TimeoutError):
                    async with asyncio.timeout(GRACE):
                        await process.wait()
                await self._end()
                raise WorkFailed(_death(process.returncode)) from None
            except BaseException:
                await self._end()
                raise
        if answer[:1] == RAISED:
            raise WorkFailed(answer[1:].decode(errors="replace"))
        return answer[1:]

    async def close(self) -> None:
        """End the child, whatever it does."""
        await self._end()

    async def _living(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            command = tied_to_parent([sys.executable, "-m", "server.process.child", self._work, str(self._memory_bytes)])
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, env=confined.environment(), cwd=confined.ROOT, start_new_session=True
                )
            except OSError as error:
                raise WorkFailed(f"no process could be started for it ({error.strerror})") from error
            log.info("child started", work=self._work, pid=self._process.pid)
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        with suppress(TimeoutError):  # asyncio also waits until somebody has read what the child wrote
            async with asyncio.timeout(GRACE):
                await process.wait()


async def _exchange(process: Process, message: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(len(message).to_bytes(LENGTH))
    process.stdin.write(message)
    await process.stdin.drain()
    length = int.from_bytes(await process.stdout.readexactly(LENGTH))
    return await process.stdout.readexactly(length)


def _death(code: int | None) -> str:
    if code is None:
        return "its process closed its output"
    if code >= 0:
        return f"its process ended with code {code}"
    with suppress(ValueError):
        return f"its process died of {signal.Signals(-code).name}"
    return f"its process died of signal {-code}"
