"""Which bundle a worker loads: told to its supervisor in a file, which is there to be read when the worker has died of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

TOLD = "OPSIN_LOADING"
"""Environment variable: path of the file, which is empty while nothing is loaded."""
REFUSED = "OPSIN_REFUSED"
"""Environment variable: what is not to be loaded again, words as they were told."""


def tell(content: str) -> None:
    """content: one word for a bundle and its files as they are now; empty: nothing is loaded. Without a supervisor nobody is told."""
    if path := os.environ.get(TOLD):
        with suppress(OSError):
            Path(path).write_text(content)


def refused() -> frozenset[str]:
    return frozenset(os.environ.get(REFUSED, "").split())
