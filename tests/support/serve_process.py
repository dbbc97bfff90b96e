"""The whole service for tests: `opsin serve` as a process, what it prints, and its children by pid."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.support.forked_program import ForkedProcess
from tests.support.processes import command
from tests.support.waiting import START_S, eventually

READY = re.compile(r"Opsin is ready on (http://\S+) ")
STOP_SECONDS = 60.0
WITHOUT = ("OPSIN_REDIS_URL", "OPSIN_CONFIG")


class Service:
    """A running `opsin serve`. Its lines are read as they come; `url` is known once it is ready."""

    def __init__(self, process: ForkedProcess | subprocess.Popen[bytes], printed: int, bundles: Path) -> None:
        """Follow a process. printed: file with its output."""
        self.bundles = bundles
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(printed,), daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Waits until the service says that it is ready."""
        eventually(lambda: self._address() or self.process.poll() is not None, "the service is ready", START_S)
        address = self._address()
        assert address is not None, f"the service ended with {self.process.returncode}:\n" + "".join(self.lines)
        return address

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the events that its processes logged under this name."""
        records = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [record for record in records if record["event"] == event]

    def children(self, kind: str) -> list[int]:
        """Pids of its `gateway`s or `worker`s, or of `valkey-server`."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):  # workers may be children of the template
            words = " ".join(command(child))
            ours = any(f"opsin {other}" in words for other in ("gateway", "template", "worker"))  # paths may hold such words too
            if f"opsin {kind}" in words or (kind in words and not ours):
                found.append(child.pid)
        return sorted(found)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", timeout=60, **options)

    def classify(self, picture: bytes, **query: str | int) -> httpx2.Response:
        return httpx2.post(f"{self.url}/v1/classify", content=picture, params=query, timeout=60)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it as an operator would; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def end(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)

    def _address(self) -> str | None:
        return next((found[1] for line in list(self.lines) if (found := READY.match(line))), None)

    def _read(self, printed: int) -> None:
        with open(printed) as lines:
            for line in lines:
                self.lines.append(line)


@contextmanager
def serve(bundles: Path, *options: str, command: list[str] | None = None, copied: bool = False, **settings: object) -> Iterator[Service]:
    """Run `opsin serve` on a free port; `settings` become `OPSIN_*` variables. It may not be ready yet: `url` waits for that.

    command: instead of Opsin's. copied: its processes are copies (`copied_serve.py`), for tests of what they do, not of how they start."""
    environment = {name: value for name, value in os.environ.items() if name not in WITHOUT}
    environment |= {"OMP_NUM_THREADS": "1", "OPSIN_METRICS_PORT": "19101"}
    environment |= {f"OPSIN_{name.upper()}": str(value) for name, value in settings.items()}
    arguments = ["--port", "0", "--bundles", str(bundles), *options]
    reading, writing = os.pipe()
    process: ForkedProcess | subprocess.Popen[bytes]
    if copied:
        process = ForkedProcess("tests.support.forked_serve", *arguments, environment=environment, prints=writing, leads=True)
    else:
        entry = command or [sys.executable, "-m", "opsin", "serve"]
        process = subprocess.Popen(
            [*entry, *arguments], stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, env=environment, start_new_session=True
        )
    os.close(writing)
    service = Service(process, reading, bundles)
    try:
        yield service
    finally:
        service.end()


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop the process for the block, as if its machine hung."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
