"""`opsin bench`: the benchmarks behind the figures in the documentation."""

from __future__ import annotations

import subprocess
import sys

import typer

from opsin.cli.shared.errors import UsageError
from opsin.engine import CHECKOUT

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""Settings of the command that pass all arguments after the name, also `--help`, to the benchmark."""


def bench(
    context: typer.Context, name: str = typer.Argument(metavar="NAME", help="Benchmark to run. Further arguments are passed to it.")
) -> None:
    """Run a benchmark: `opsin bench merging`, `opsin bench serving --help`; benchmarks/README.md lists them."""
    if name in ("--help", "-h"):
        typer.echo(context.get_help())
        return
    if CHECKOUT is None or not (CHECKOUT / "benchmarks").is_dir():  # the wheel does not contain them
        raise UsageError("`opsin bench` needs a checkout: git clone the project, then `make bench` there")
    names = sorted(file.stem for file in (CHECKOUT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in file.read_text())
    if name not in names:
        raise UsageError(f"bench: unknown benchmark {name!r}; available: {', '.join(names) or 'none'}")
    command = [sys.executable, "-P", "-m", "opsin.engine", f"benchmarks.{name}", *context.args]
    ended = subprocess.run(command, cwd=CHECKOUT, check=False)
    raise typer.Exit(ended.returncode)
