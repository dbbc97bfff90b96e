"""The `opsin` command: a file per group of commands, each importing what it runs only when it runs."""

from opsin.cli.app import main

__all__ = ["main"]
