"""Gain of a change of the service: `python -m benchmarks.versions OTHER_CHECKOUT`. Two versions in turn, on one machine, in one run.

The other checkout has its own environment in `.venv`. Load generator and images are this checkout's; each version makes its own bundles.
Both run all the time, and only one of them has work: what else the machine does changes from one start to the next more than from one burst
to the next.
Where the model costs nothing it also shows the CPU time of each process for a request, which depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import httpx2
from rich.console import Console
from rich.table import Table

from benchmarks import machine, reference, service
from benchmarks.serving import burst

HERE = Path(__file__).resolve().parent.parent
NULL = "null-0"
WARM = 2.0
STEPS = 50
"""Steps of each inpainting."""
INPAINTERS = 48
"""Clients: more than fit into the batches of two slots."""
CLIP = HERE / "server" / "tasks" / "sample.mp4"
MAKE_BUNDLES = """
import sys
from pathlib import Path
from benchmarks import reference
reference.make_null_bundle(Path(sys.argv[1]) / "null", "null-0", 0.0)
reference.make_bundle(Path(sys.argv[1]) / "reference")
"""


@dataclass(frozen=True)
class CheckoutVersion:
    """A checkout and the folder in which its bundles and pictures lie."""

    name: str
    checkout: Path
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of its service."""

    def bundles(self, *names: str) -> Path:
        """Write a folder of these bundles, which ship with this version."""
        folder = self.folder / f"only-{names[0]}"
        if not folder.exists():
            for name in names:
                shutil.copytree(self.checkout / "bundles" / name, folder / name)
        return folder

    @property
    def python(self) -> str:
        return sys.executable if self.checkout == HERE else str(self.checkout / ".venv" / "bin" / "python")


@dataclass(frozen=True)
class RunningVersion:
    """A version's service."""

    version: CheckoutVersion
    observed: service.ObservedService

    @property
    def url(self) -> str:
        return self.observed.url

    @property
    def pictures(self) -> Path:
        return self.version.folder.parent / "pictures"


@dataclass(frozen=True)
class VersionFigure:
    """Something to measure; `better` says which direction is."""

    label: str
    unit: str
    better: str
    bundles: Callable[[CheckoutVersion], Path]
    """Served while it is measured."""
    measure: Callable[[RunningVersion, float], dict[str, float]]
    """Function that measures the figure and values that are only shown, by label."""


def requests_without_model(running: RunningVersion, seconds: float) -> dict[str, float]:
    """Requests/s with 16 clients, images of 1 KB and a model that costs nothing; microseconds of CPU per request of each process."""
    before = running.observed.cpu_seconds()
    report = burst(running.url, NULL, running.pictures.parent / "small", ["--clients", 16, "--warm", WARM, "--seconds", seconds])
    after = running.observed.cpu_seconds()
    spent = {name: (after[name] - before[name]) * 1e6 / (report.per_second * (seconds + WARM)) for name in after}
    return {NO_MODEL: report.per_second, "batch size": report.batch_size} | {
        f"{name}, µs of CPU a request": used for name, used in spent.items()
    }


def overhead_alone(running: RunningVersion, seconds: float) -> dict[str, float]:
    """Milliseconds that the service adds to preparation and inference of one client's requests: median of total − prepare − inference."""
    return {ALONE: burst(running.url, reference.NAME, running.pictures, ["--clients", 1, "--warm", WARM, "--seconds", seconds]).overhead_ms}


def images_of_the_reference(running: RunningVersion, seconds: float) -> dict[str, float]:
    """Images/s of the reference bundle with 16 clients."""
    return {
        IMAGES: burst(running.url, reference.NAME, running.pictures, ["--clients", 16, "--warm", WARM, "--seconds", seconds]).per_second
    }


def steps_of_inpainting(running: RunningVersion, seconds: float) -> dict[str, float]:
    """Steps/s of the inpainting that ships, saturated."""
    image = next(running.pictures.iterdir()).read_bytes()
    query = {"mask": "center", "steps": STEPS, "method": "network"}
    return {INPAINTING: STEPS * answers_per_second(f"{running.url}/v1/inpaint", image, "image/jpeg", query, INPAINTERS, seconds)}


def frames_of_actions(running: RunningVersion, seconds: float) -> dict[str, float]:
    """Frames/s of the actions bundle that ships, as many clips at once as there are CPUs."""
    with av.open(str(CLIP)) as clip:
        frames = sum(1 for packet in clip.demux(video=0) if packet.size)
    clips = answers_per_second(
        f"{running.url}/v1/actions", CLIP.read_bytes(), "video/mp4", {"detail": "fast"}, os.cpu_count() or 1, 2 * seconds
    )
    return {ACTIONS: frames * clips}


def answers_per_second(url: str, content: bytes, media_type: str, query: Mapping[str, Any], clients: int, seconds: float) -> float:
    """Answers a second in a closed loop, between the first and the last that came after it is warm."""
    came: list[float] = []
    warm, end = time.monotonic() + WARM, time.monotonic() + WARM + seconds

    def ask() -> None:
        with httpx2.Client(timeout=120) as client:
            while time.monotonic() < end:
                client.post(url, params=query, content=content, headers={"Content-Type": media_type}).raise_for_status()
                came.append(time.monotonic())

    with ThreadPoolExecutor(clients) as pool:
        for one in [pool.submit(ask) for _ in range(clients)]:
            one.result()
    counted = sorted(moment for moment in came if moment >= warm)
    return (len(counted) - 1) / (counted[-1] - counted[0])


NO_MODEL = "no model, 16 clients"
ALONE = "one client alone: total − prepare − inference"
IMAGES = "reference bundle, 16 clients"
INPAINTING = "inpainting, saturated"
ACTIONS = "actions, a clip for each CPU"
FIGURES = (
    VersionFigure(NO_MODEL, "requests/s", "higher", lambda version: version.folder / "null", requests_without_model),
    VersionFigure(ALONE, "ms", "lower", lambda version: version.folder / "reference", overhead_alone),
    VersionFigure(IMAGES, "images/s", "higher", lambda version: version.folder / "reference", images_of_the_reference),
    VersionFigure(INPAINTING, "steps/s", "higher", lambda version: version.bundles("inpaint"), steps_of_inpainting),
    VersionFigure(ACTIONS, "frames/s", "higher", lambda version: version.bundles("actions", "movenet", "actions-lart"), frames_of_actions),
)


Values = dict[str, dict[str, list[float]]]
"""Label → version → one value per round."""


def compare(figures: Sequence[VersionFigure], versions: Sequence[CheckoutVersion], rounds: int, seconds: float, console: Console) -> Values:
    """Measure all figures of both versions, in an order that changes from round to round."""
    values: Values = {}
    for figure in figures:
        with ExitStack() as stack:
            services = [stack.enter_context(serving(version, figure.bundles(version))) for version in versions]
            for number in range(rounds):
                for running in services if number % 2 == 0 else reversed(services):
                    measured = figure.measure(running, seconds)
                    for label, value in measured.items():
                        values.setdefault(label, {}).setdefault(running.version.name, []).append(value)
                    console.print(f"{figure.label}, round {number + 1}, {running.version.name}: {measured[figure.label]:.2f} {figure.unit}")
    return values


@contextmanager
def serving(version: CheckoutVersion, bundles: Path) -> Iterator[RunningVersion]:
    with patch.dict(os.environ, version.variables), service.observe(bundles, checkout=version.checkout) as observed:
        yield RunningVersion(version, observed)


def show(values: Mapping[str, Mapping[str, Sequence[float]]], console: Console) -> None:
    titles = {figure.label: f"{figure.label} ({figure.unit}, {figure.better} is better)" for figure in FIGURES}
    table = Table("", "other", "this", "this ÷ other, median of rounds", "min", "max", title="Two versions, measured in turn")
    for label in sorted(values, key=lambda label: label not in titles):
        other, this = values[label]["other"], values[label]["this"]
        ratios = [new / old for new, old in zip(this, other, strict=True)]
        medians = [f"{statistics.median(series):.2f}" for series in (other, this, ratios)]
        table.add_row(titles.get(label, f"  {label}"), *medians, f"{min(ratios):.2f}", f"{max(ratios):.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of counted load per measurement")
    parser.add_argument("--only", choices=[figure.label for figure in FIGURES], action="append", help="only these figures")
    options = parser.parse_args()
    console = machine.show()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        reference.write_pictures(folder / "pictures")
        reference.write_small_pictures(folder / "small")
        versions = [
            CheckoutVersion("other", options.other.resolve(), folder / "other"),
            CheckoutVersion("this", HERE, folder / "this"),
        ]
        for version in versions:
            subprocess.run([version.python, "-c", MAKE_BUNDLES, str(version.folder)], cwd=version.checkout, check=True)
        figures = [figure for figure in FIGURES if options.only is None or figure.label in options.only]
        show(compare(figures, versions, options.rounds, options.seconds, console), console)


if __name__ == "__main__":
    main()
