"""The `opsin` command. Each module is a command or a group of commands, and imports what it needs only when it runs."""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line of this process with `app.main`. Ctrl-C may come while that is being imported."""
    try:
        from opsin.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()
