"""The `opsin` command: a file per group of commands, each importing what it runs only when it runs."""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line of this process, as `app.main` does: Ctrl-C may come before that is imported."""
    try:
        from opsin.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()
