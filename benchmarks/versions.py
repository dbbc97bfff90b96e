"""What a change of the service gains: `python -m benchmarks.versions OTHER_CHECKOUT`. Two versions in turn, on one machine, in one run.

The other checkout has its own environment in `.venv`. Load generator and images are this checkout's; each version makes its own bundles.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import machine, reference, service
from benchmarks.serving import burst

HERE = Path(__file__).resolve().parent.parent
NULL = "null-0"
MAKE_BUNDLES = """
import sys
from pathlib import Path
from benchmarks import reference
reference.make_null_bundle(Path(sys.argv[1]) / "null", "null-0", 0.0)
reference.make_bundle(Path(sys.argv[1]) / "reference")
"""


@dataclass(frozen=True)
class Version:
    """A checkout and the folder in which its bundles and pictures lie."""

    name: str
    checkout: Path
    folder: Path

    @property
    def python(self) -> str:
        return sys.executable if self.checkout == HERE else str(self.checkout / ".venv" / "bin" / "python")


@dataclass(frozen=True)
class Figure:
    """Something to measure; `better` says which direction is."""

    label: str
    unit: str
    better: str
    measure: Callable[[Version, float], float]


def requests_without_model(version: Version, seconds: float) -> float:
    """Requests/s with 16 clients, images of 1 KB and a model that costs nothing."""
    with service.running(version.folder / "null", checkout=version.checkout) as url:
        return burst(url, NULL, version.folder.parent / "small", ["--clients", 16, "--warm", 2, "--seconds", seconds]).per_second


def overhead_alone(version: Version, seconds: float) -> float:
    """Milliseconds that the service adds to preparation and inference of one client's requests: median of total − prepare − inference."""
    with service.running(version.folder / "reference", checkout=version.checkout) as url:
        report = burst(url, reference.NAME, version.folder.parent / "pictures", ["--clients", 1, "--warm", 4, "--seconds", seconds])
        return report.overhead_ms


FIGURES = (
    Figure("no model, 16 clients", "requests/s", "higher", requests_without_model),
    Figure("one client alone: total − prepare − inference", "ms", "lower", overhead_alone),
)


def compare(versions: Sequence[Version], rounds: int, seconds: float, console: Console) -> dict[str, dict[str, list[float]]]:
    """Figure → version → one value per round. The order of the versions changes from round to round."""
    values: dict[str, dict[str, list[float]]] = {figure.label: {version.name: [] for version in versions} for figure in FIGURES}
    for number in range(rounds):
        for figure in FIGURES:
            for version in versions if number % 2 == 0 else reversed(versions):
                value = figure.measure(version, seconds)
                values[figure.label][version.name].append(value)
                console.print(f"round {number + 1}: {figure.label}, {version.name}: {value:.2f} {figure.unit}")
    return values


def show(values: dict[str, dict[str, list[float]]], console: Console) -> None:
    table = Table("", "other", "this", "this ÷ other, median of rounds", "min", "max", title="Two versions, measured in turn")
    for figure in FIGURES:
        other, this = values[figure.label]["other"], values[figure.label]["this"]
        ratios = [new / old for new, old in zip(this, other, strict=True)]
        medians = [f"{statistics.median(series):.2f}" for series in (other, this, ratios)]
        table.add_row(f"{figure.label} ({figure.unit}, {figure.better} is better)", *medians, f"{min(ratios):.2f}", f"{max(ratios):.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of counted load per measurement")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(*machine.describe().lines(), sep="\n")
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        reference.write_pictures(folder / "pictures")
        reference.write_small_pictures(folder / "small")
        versions = [
            Version("other", options.other.resolve(), folder / "other"),
            Version("this", HERE, folder / "this"),
        ]
        for version in versions:
            subprocess.run([version.python, "-c", MAKE_BUNDLES, str(version.folder)], cwd=version.checkout, check=True)
        show(compare(versions, options.rounds, options.seconds, console), console)


if __name__ == "__main__":
    main()
