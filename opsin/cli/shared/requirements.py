"""Checks whether a command can use the engine, and says what to do where it cannot: on another system, without a library or a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

from opsin.cli.shared.errors import UsageError
from opsin.engine import CHECKOUT, enter

FIND_OPSIN_PROGRAM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('opsin') is None)"


def require_processes(command: str) -> None:
    """Raise UsageError where the processes of a service cannot run."""
    if not sys.platform.startswith("linux"):
        raise UsageError(f"`opsin {command}` runs on Linux; elsewhere run its image with Docker: `docker compose up --build` in a checkout")
    if not _is_installed():
        raise UsageError(
            f"`opsin {command}` starts processes, which find no opsin in the working folder: `pip install -e .` in the checkout"
        )


def _is_installed() -> bool:
    """Whether `python -P` finds `opsin`. A process is asked only where `sys.path` leaves it open: what the working folder and PYTHONPATH
    have named may be installed, too."""
    first = 0 if sys.flags.safe_path else 1
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if PathFinder.find_spec("opsin", [path for path in sys.path[first:] if path not in given]) is not None:
        return True
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-P", "-c", FIND_OPSIN_PROGRAM], env=bare, check=False).returncode == 0


def require_benchmarks() -> Path:
    """The checkout. Raises UsageError where there is none: benchmarks are no part of the wheel."""
    if CHECKOUT is None or not (CHECKOUT / "benchmarks").is_dir():
        raise UsageError("`opsin bench` needs a checkout: git clone the project, then `make bench` there")
    return CHECKOUT


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Inside, the engine and the libraries of an extra may be imported. Raises UsageError where one of them is not installed."""
    enter()
    try:
        yield
    except ModuleNotFoundError as error:
        made = "run `make serve` once, or " if extra == "server" else ""
        how = f"{made}`pip install -e '.[{extra}]'` in the checkout"
        if CHECKOUT is None:
            how = f"`pip install --find-links FOLDER 'opsin[{extra}]'`, where FOLDER holds Opsin's wheels"
        raise UsageError(f"the Python package {error.name!r} is missing: {how}") from error
    except Exception as error:
        from models.extensions import ExtensionError

        if isinstance(error, ExtensionError):
            raise UsageError(f"{error}; mend or uninstall it, or set OPSIN_EXTENSIONS=false") from error
        raise
