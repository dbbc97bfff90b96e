"""The `opsin` command and Python environments as processes, and which programs a process has started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support import forked_program

NAMED_S = 10.0


def children(program: str, parent: int | None = None) -> list[psutil.Process]:
    """List the children with `program` among the words of their command, of this process by default. One that has just ended is left
    out."""
    return [child for child in psutil.Process(parent).children() if program in command(child)]


def copies(program: str, parent: int | None = None) -> list[psutil.Process]:
    """List the copies of the templates of `program` that a process has started (`models.processes.fork_server`)."""
    return [copy for template in children(program, parent) for copy in children(program, template.pid)]


def command(process: psutil.Process) -> list[str]:
    """Return the words of its command; none if it has ended.

    The system shows none either for the first moment of a program, in which this waits."""
    until = time.monotonic() + NAMED_S
    try:
        while not (words := process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
            time.sleep(0.001)
    except psutil.Error:
        return []
    return list(words)


def alive(pid: int) -> bool:
    """Return whether a process lives: a child that was not waited for is dead, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def takes_work(pid: int) -> Callable[[], bool]:
    """Return whether the child of a sandbox has taken a file since now, which is its standard input then."""
    file = Path(f"/proc/{pid}/fd/0")
    before = file.stat().st_ino
    return lambda: file.stat().st_ino != before


def opsin(*arguments: str | Path, seconds: float = 240, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, for so many seconds at most, in a folder, with these OPSIN_… variables and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    return forked_program.run("opsin", *map(str, arguments), environment=inherited | environment, seconds=seconds, folder=folder)


def environment(folder: Path, *paths: Path, with_pip: bool = False) -> Path:
    """Make one, and return its `bin`. It imports what is installed into it, then from `paths`, then the libraries of this Python."""
    venv.create(folder, with_pip=with_pip)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "borrowed.pth").write_text("\n".join([*map(str, paths), *borrowed]) + "\n")
    return folder / "bin"
