"""`opsin bench`: the benchmarks behind the figures in the documentation."""

from __future__ import annotations

import subprocess
import sys

import typer

from opsin.cli.shared.errors import UsageError
from opsin.cli.shared.requirements import require_benchmarks

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""Settings of the command that pass all arguments after the name, also `--help`, to the benchmark."""


def bench(context: typer.Context, name: str = typer.Argument(help="Benchmark to run. Further arguments are passed to it.")) -> None:
    """Run a benchmark: `opsin bench merging`, `opsin bench serving --help`; benchmarks/README.md lists them."""
    if name in ("--help", "-h"):
        typer.echo(context.get_help())
        return
    checkout = require_benchmarks()
    names = sorted(file.stem for file in (checkout / "benchmarks").glob("*.py") if '__name__ == "__main__"' in file.read_text())
    if name not in names:
        raise UsageError(f"bench: unknown benchmark {name!r}; available: {', '.join(names) or 'none'}")
    command = [sys.executable, "-P", "-m", "opsin.engine", f"benchmarks.{name}", *context.args]
    ended = subprocess.run(command, cwd=checkout, check=False)
    raise typer.Exit(ended.returncode)
