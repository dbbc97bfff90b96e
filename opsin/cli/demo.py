"""`opsin demo`: the whole service, from start to stop, on real pictures."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.engine import HOUSE, require_engine
from opsin.cli.exits import Failure
from opsin.cli.screen import screen

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client
    from opsin.results import Model

PICTURES = HOUSE / "docs" / "pictures" / "clipart"
ROUNDS, ROUND_SECONDS = 3, 1.5


@dataclass(frozen=True)
class TitledPicture:
    path: Path
    title: str


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, until Ctrl-C.")] = False,
    bundles: Annotated[Path, typer.Option(help="Folder of bundles.", show_default=False)] = HOUSE / "bundles",
) -> None:
    """Start everything, classify real pictures, measure what token merging brings, stop. Needs no network."""
    require_engine("demo")
    from opsin.cli.own_service import own_service
    from opsin.client import Client
    from opsin.errors import OpsinError

    console = screen()
    pictures = titled_pictures(PICTURES)
    console.print("Starting the queue, a gateway and a worker …", style="dim")
    try:
        with own_service(bundles) as url, Client(url) as client:
            model = show_pictures(client, pictures, console)
            show_throughput(client, model, pictures, console)
            show_addresses(url, console)
            if keep:
                console.print("Staying up; Ctrl-C stops it.")
                _await_interrupt()
    except OpsinError as error:
        raise Failure(f"demo: {error}") from error


def titled_pictures(folder: Path) -> list[TitledPicture]:
    """The pictures that `titles.json` names, in its order. Raises Failure."""
    try:
        titles = json.loads((folder / "titles.json").read_text())
    except (OSError, ValueError) as error:
        raise Failure(f"demo: {folder / 'titles.json'}: {error}") from error
    return [TitledPicture(folder / name, title) for name, title in titles.items()]


def show_pictures(client: Client, pictures: list[TitledPicture], console: Console) -> Model:
    """Classify one picture after the other, print a table, and return the model that did it."""
    from opsin.cli.classify import picture_table

    found = [client.classify(picture.path) for picture in pictures]
    model = client.model(f"{found[0].model}@{found[0].version}")
    console.print(picture_table(zip((picture.title for picture in pictures), found, strict=True), f"What {model.id} sees"))
    return model


def show_throughput(client: Client, model: Model, pictures: list[TitledPicture], console: Console) -> None:
    """Measure pictures per second with merging off and at the model's default rung, and print both and their ratio."""
    from rich.progress import Progress
    from rich.table import Table

    from opsin.cli.burst import CLIENTS, compare

    rung = model.details.get("default_rung")
    if not rung:
        console.print(f"{model.id} has no rung to compare with merging off.")
        return
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Measuring", total=2 * (ROUNDS + 1))
        bursts = compare(
            client.url,
            [picture.path.read_bytes() for picture in pictures],
            ["off", rung],
            rounds=ROUNDS,
            seconds=ROUND_SECONDS,
            tick=lambda: progress.advance(task),
        )
    off, on = bursts["off"], bursts[rung]
    table = Table(
        title=f"Throughput: {CLIENTS} clients, one picture a request, {ROUNDS} rounds of {ROUND_SECONDS} s each in turn",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for name in ("Merging", "Pictures/s", "Range", "Network's share of the time", "Network alone"):
        table.add_column(name, justify="left" if name == "Merging" else "right")
    for name, burst in bursts.items():
        table.add_row(
            name,
            f"[bold]{burst.rate:.0f}[/]",
            f"{burst.rates[0]:.0f}..{burst.rates[-1]:.0f}",
            f"{burst.network_share:.0%}",
            f"{burst.network_rate:.0f}/s",
        )
    console.print()
    console.print(table)
    console.print(
        f"[bold]{on.rate / off.rate:.2f}×[/] the pictures per second with merging, {on.network_rate / off.network_rate:.2f}× in the "
        "network alone; the rest of the time goes to decoding, HTTP, the queue and these clients, all on this machine."
    )


def show_addresses(url: str, console: Console) -> None:
    """Print the addresses of the API's documentation and of the metrics, after reading both."""
    import httpx

    console.print()
    for name, path in (("API docs", "/docs"), ("Metrics", "/metrics")):
        try:
            httpx.get(url + path, timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            raise Failure(f"demo: {url}{path}: {error}") from error
        console.print(f"{name:<9} {url}{path}")
    console.print("`make serve` keeps the service up on http://127.0.0.1:8000, `opsin classify FILE …` asks it.")


def _await_interrupt() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
