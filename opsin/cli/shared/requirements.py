"""Requirements of commands: the operating system, the engine's libraries, or a checkout. Errors say what to do if one is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder

from opsin.cli.shared.errors import UsageError
from opsin.engine import CHECKOUT, enter

FIND_OPSIN_PROGRAM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('opsin') is None)"


def require_processes(command: str) -> None:
    """Raise UsageError if the processes of a service cannot run on this system."""
    if not sys.platform.startswith("linux"):
        raise UsageError(f"`opsin {command}` runs on Linux; elsewhere run its image with Docker: `docker compose up --build` in a checkout")
    if not _is_installed():
        raise UsageError(
            f"`opsin {command}` starts processes, which cannot import opsin from the working folder: `pip install -e .` in the checkout"
        )


def _is_installed() -> bool:
    """Return whether `python -P` finds `opsin`. A process is started only if `sys.path` leaves it open: a folder that is the working folder
    or in PYTHONPATH may be installed, too."""
    first = 0 if sys.flags.safe_path else 1
    pythonpath = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if PathFinder.find_spec("opsin", [path for path in sys.path[first:] if path not in pythonpath]) is not None:
        return True
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-P", "-c", FIND_OPSIN_PROGRAM], env=environment, check=False).returncode == 0


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Let the block import the engine and the libraries of an extra. Raises UsageError if one of them is not installed."""
    enter()
    try:
        yield
    except ModuleNotFoundError as error:
        make_hint = "run `make serve` once, or " if extra == "server" else ""
        advice = f"{make_hint}`pip install -e '.[{extra}]'` in the checkout"
        if CHECKOUT is None:
            advice = f"`pip install --find-links FOLDER 'opsin[{extra}]'`, where FOLDER holds Opsin's wheels"
        raise UsageError(f"the Python package {error.name!r} is missing: {advice}") from error
    except Exception as error:
        registry = sys.modules.get("models.registry")  # only once imported it raises ExtensionError
        if registry is not None and isinstance(error, registry.ExtensionError):
            raise UsageError(f"{error}; repair or uninstall it, or set OPSIN_EXTENSIONS=false") from error
        raise
