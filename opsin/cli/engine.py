"""Checks whether a command can use the engine, and says what to do where it cannot: on another system, without a library or a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

from opsin.cli.exits import Misuse
from opsin.engine import CHECKOUT


def require_linux(command: str) -> None:
    """Raise Misuse where the processes of a service cannot run."""
    if not sys.platform.startswith("linux"):
        raise Misuse(f"`opsin {command}` runs on Linux; elsewhere run its image with Docker: `docker compose up --build` in a checkout")


def require_benchmarks() -> Path:
    """The checkout. Raises Misuse where there is none: benchmarks are no part of the wheel."""
    if CHECKOUT is None or not (CHECKOUT / "benchmarks").is_dir():
        raise Misuse("`opsin bench` needs a checkout: git clone the project, then `make bench` there")
    return CHECKOUT


def lacks(module: ModuleNotFoundError, extra: str = "server") -> Misuse:
    """What to say where a library of an extra is not installed."""
    if CHECKOUT is None:
        return Misuse(f"the Python package {module.name!r} is missing: `pip install 'opsin[{extra}]'`")
    made = "run `make serve` once, or " if extra == "server" else ""
    return Misuse(f"the Python package {module.name!r} is missing: {made}`pip install -e '.[{extra}]'` in the checkout")
