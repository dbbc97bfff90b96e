"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeVar

import typer

from opsin.cli.shared.errors import UsageError

Seconds = TypeVar("Seconds", float, float | None)


def require_positive(timeout: Seconds) -> Seconds:
    """Return a timeout that is positive or None. Raises UsageError for others."""
    if timeout is not None and not timeout > 0:  # nor is NaN
        raise UsageError(f"--timeout: {timeout:g} seconds; it must be positive")
    return timeout


Url = Annotated[str | None, typer.Option(help="URL of the service. [default: $OPSIN_URL or http://127.0.0.1:8000]")]
Model = Annotated[str | None, typer.Option(help="Bundle to use: NAME or NAME@VERSION.")]
Merge = Annotated[str | None, typer.Option(help="Token merging: off, the number of tokens to merge per block, or a rung.")]
Timeout = Annotated[float, typer.Option(help="Timeout in seconds.", callback=require_positive)]
ImageTimeout = Annotated[float, typer.Option(help="Timeout for each image, in seconds.", callback=require_positive)]
