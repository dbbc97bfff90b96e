"""The engine behind the front door: there in a checkout and in the image, absent where only the client is installed."""

from __future__ import annotations

from pathlib import Path

import opsin
from opsin.cli.exits import Misuse

HOUSE = Path(opsin.__file__).parent.parent
"""The folder that holds `opsin/`: the checkout, or a site-packages that holds the client alone."""


def require_engine(command: str) -> None:
    """Raise Misuse where `opsin COMMAND` cannot run. A stranger's package named `server` or `models` does not count as ours."""
    if not (HOUSE / "server" / "settings.py").is_file():
        raise Misuse(
            f"`opsin {command}` needs the service, and this installation holds the client alone. "
            "Run it from a checkout (git clone the project, then `make serve`) or from the image (`docker compose up`)."
        )


def lacks(module: ModuleNotFoundError, extra: str = "server") -> Misuse:
    """What to say where the checkout is there and a library of its extras is not."""
    made = "run `make serve` once, or " if extra == "server" else ""
    return Misuse(f"the Python package {module.name!r} is missing: {made}`pip install -e '.[{extra}]'` in the checkout")
