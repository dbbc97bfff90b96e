"""`opsin bench`: the benchmarks behind every figure that the documentation claims."""

from __future__ import annotations

import subprocess
import sys

import typer

from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.requirements import require_benchmarks

ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""Settings of the command: what follows the name, `--help` too, is for the benchmark."""


def bench(context: typer.Context, name: str = typer.Argument(help="Which one; further arguments are its own.")) -> None:
    """Run a benchmark: `opsin bench merging`, `opsin bench serving --help`; benchmarks/README.md lists them."""
    if name in ("--help", "-h"):
        typer.echo(context.get_help())
        return
    checkout = require_benchmarks()
    known = sorted(file.stem for file in (checkout / "benchmarks").glob("*.py") if '__name__ == "__main__"' in file.read_text())
    if name not in known:
        raise UsageError(f"bench: no benchmark is called {name!r}; there are {', '.join(known) or 'none'}")
    command = [sys.executable, "-P", "-m", "opsin.engine", f"benchmarks.{name}", *context.args]
    ended = subprocess.run(command, cwd=checkout, check=False)
    raise typer.Exit(ended.returncode)
