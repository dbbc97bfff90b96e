"""Options of the commands that ask a running service."""

from __future__ import annotations

from typing import Annotated, TypeVar

import typer

from opsin.cli.shared.errors import UsageError

Seconds = TypeVar("Seconds", float, float | None)


def positive(timeout: Seconds) -> Seconds:
    """Raises UsageError for what is no time to wait."""
    if timeout is not None and not timeout > 0:  # nor is NaN
        raise UsageError(f"--timeout: {timeout:g} seconds; it must be positive")
    return timeout


Url = Annotated[str | None, typer.Option(help="The service. [default: $OPSIN_URL or http://127.0.0.1:8000]", show_default=False)]
Model = Annotated[str | None, typer.Option(help="NAME or NAME@VERSION.", show_default=False)]
Merge = Annotated[str | None, typer.Option(help="off, tokens to merge per block, or a rung.", show_default=False)]
Timeout = Annotated[float, typer.Option(help="Seconds.", callback=positive)]
TimeoutOfImage = Annotated[float, typer.Option(help="Seconds per image.", callback=positive)]
