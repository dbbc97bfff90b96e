"""`opsin serve` as a user starts it, for as long as a measurement takes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from opsin.cli.own_service import own_service


def running(bundles: Path, *, checkout: Path | None = None, **settings: object) -> AbstractContextManager[str]:
    """The URL of a service that is ready. Settings as in `server.settings`; whatever the environment says of others does not count.

    checkout: another one, with an environment of its own in `.venv`, whose service is started instead of this one's.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    environment |= {f"OPSIN_{name.upper()}": str(value) for name, value in settings.items()}
    if checkout is None:
        return own_service(bundles, environment)
    return own_service(bundles, environment, python=str(checkout / ".venv" / "bin" / "python"), folder=checkout)
