"""`opsin demo`: the whole service, from start to stop, on real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.demo.actions import show_actions
from opsin.cli.demo.sounds import is_sound_classifier, show_sounds
from opsin.cli.services import settings_of
from opsin.cli.shared.console import make_console, make_table
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.interrupts import pending_interrupt
from opsin.cli.shared.requirements import require_processes
from opsin.engine import CHECKOUT, FOLDER, enter

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client
    from opsin.results import Model

SHOWS_MERGING = "flags"
"""The starter whose tokens merge; without it the default model is asked."""
PICTURES = FOLDER / "docs" / "pictures" / "flags"
ROUNDS = 3
DEFAULT_URL = "http://127.0.0.1:8000"
"""`opsin serve` is found there."""


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, until Ctrl-C.")] = False,
    bundles: Annotated[Path | None, typer.Option(help="Folder of bundles. [default: the starters]", show_default=False)] = None,
    seconds: Annotated[float, typer.Option(help="Length of each measured round.", min=0.1, max=60)] = 1.5,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of what is made.")] = Path("opsin-demo"),
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps what is downloaded. [default: data in OPSIN_CACHE]", show_default=False)
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Also save what is shown as a picture.", show_default=False)] = None,
) -> None:
    """Start everything, classify real images, measure what token merging brings, compare drawings with words, fill holes in
    drawings, reconstruct a photograph with depth and without, name instruments by their sound and camera moves, watch a video, stop.

    Needs no network but for the video, which is fetched once and left out where that fails.
    """
    require_processes("demo")
    enter()
    from opsin.cli.demo.clips import NAMES_MOVES, show_clips
    from opsin.cli.demo.inpainting import show_inpainting
    from opsin.cli.demo.reconstruction import show_reconstruction
    from opsin.cli.demo.words import show_words
    from opsin.cli.shared.temporary_service import temporary_service
    from opsin.client import Client
    from opsin.errors import OpsinError

    bundles = bundles or starters()
    if not any(bundles.glob("*/*/bundle.json")):
        raise UsageError(f"demo: {bundles} holds no bundle; name another folder with --bundles")
    console, output = make_console(record=svg is not None), relative_to_cwd(output)
    pictures = sorted(PICTURES.glob("*.png"))
    if not pictures:
        raise CommandError(f"demo: {PICTURES} holds no images")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"demo: {output}: cannot be made ({error.strerror}); name another folder with --output") from error
    console.print("Starting the queue, a gateway and a worker …", style="dim")
    try:
        with pending_interrupt() as stop_if_interrupted, temporary_service(bundles) as url, Client(url) as client:
            stop_if_interrupted()
            model = show_pictures(client, pictures, console)
            stop_if_interrupted()
            show_throughput(client, model, pictures, seconds, console)
            stop_if_interrupted()
            if any(served.task == "zero-shot" for served in client.models()):
                show_words(client, console)
            stop_if_interrupted()
            if any(served.task == "inpaint" for served in client.models()):
                show_inpainting(client, output, console)
            stop_if_interrupted()
            if any(served.task == "reconstruct" for served in client.models()):
                show_reconstruction(client, output, console)
            stop_if_interrupted()
            if hearing := next((served.id for served in client.models() if is_sound_classifier(served)), None):
                show_sounds(client, hearing, console)
            stop_if_interrupted()
            if any(served.name == NAMES_MOVES for served in client.models()):
                show_clips(client, console)
            stop_if_interrupted()
            if any(served.route == "actions" for served in client.models()):
                show_actions(client, cache or (settings_of(None).cache_folder or output) / "data", output, console)
            stop_if_interrupted()
            show_addresses(url, console, keep)
            if keep:
                wait_for_interrupt(console)
    except OpsinError as error:
        raise CommandError(f"demo: {error}") from error
    if svg is not None:
        console.save_svg(str(svg), title="make demo")


def starters() -> Path:
    """Their folder in the checkout or in the package `opsin-starters`. Raises UsageError where there is none."""
    folder = CHECKOUT / "bundles" if CHECKOUT is not None else settings_of(None).starters_folder
    if folder is None:
        raise UsageError(
            "demo: the starters are missing: install their wheel, opsin_starters-*.whl, unset OPSIN_STARTERS, "
            "or name a folder with --bundles"
        )
    return folder


def relative_to_cwd(path: Path) -> Path:
    """The short form in which the user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def show_pictures(client: Client, pictures: list[Path], console: Console) -> Model:
    """Classify one picture after the other, print a table, and return the model that did it."""
    from opsin.cli.classify import label_table

    # one that is still loading counts: the service is ready when its default models are, and requests for others wait
    flags = next((served.id for served in client.models() if served.name == SHOWS_MERGING and served.state in ("ready", "loading")), None)
    found = [client.classify(picture, model=flags) for picture in pictures]
    model = client.model(f"{found[0].model}@{found[0].version}")
    console.print(f"\nWhat {model.id} sees")
    console.print(label_table(zip((picture.name for picture in pictures), found, strict=True)))
    if model.details.get("default_rung") and any(one.merging and one.merging.tokens_out == one.merging.tokens_in for one in found):
        console.print("As many tokens out as in: this worker has measured that merging does not pay for one image at a time.")
    return model


def show_throughput(client: Client, model: Model, pictures: list[Path], seconds: float, console: Console) -> None:
    """Measure images per second with merging off and at the model's default rung, and print both and their ratio."""
    from rich.progress import Progress

    from opsin.cli.demo.throughput import CLIENTS, PICTURES_PER_REQUEST, compare

    rung = model.details.get("default_rung")
    if not rung:
        console.print(f"{model.id} has no rung to compare with merging off.")
        return
    with Progress(console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Measuring", total=2 * (ROUNDS + 1))
        bursts = compare(
            client.url,
            model.id,
            [picture.read_bytes() for picture in pictures],
            ["off", rung],
            rounds=ROUNDS,
            seconds=seconds,
            tick=lambda: progress.advance(task),
        )
    off, on = bursts["off"], bursts[rung]
    figures = ("Images/s", "Range", "Network per image", "Images per batch", "Batches at a time")
    table = make_table("Merging", *figures, right=figures)
    for name, burst in bursts.items():
        table.add_row(
            name,
            f"[bold]{burst.rate:.0f}[/]",
            f"{burst.rates[0]:.0f}..{burst.rates[-1]:.0f}",
            f"{burst.milliseconds:.1f} ms",
            f"{burst.batch_size:.1f}",
            f"{burst.batches_at_a_time:.2f}",
        )
    console.print(f"\nThroughput: {CLIENTS} clients, {PICTURES_PER_REQUEST} images a request, {ROUNDS} × {seconds:g} s each, in turn")
    console.print(table)
    console.print(
        f"[bold]{on.rate / off.rate:.2f}×[/] the images per second with merging, {off.milliseconds / on.milliseconds:.2f}× in the "
        "network alone; decoding, HTTP, the queue and these clients share the machine with it."
    )


def show_addresses(url: str, console: Console, keep: bool) -> None:
    """Read the API's documentation and the metrics, and print where they are: here if this service stays up, else at the usual address."""
    import httpx2

    console.print()
    for name, path in (("API docs", "/docs"), ("Metrics", "/metrics")):
        try:
            httpx2.get(url + path, timeout=10).raise_for_status()
        except httpx2.HTTPError as error:
            raise CommandError(f"demo: {url}{path}: {error}") from error
        console.print(f"{name:<9} {url if keep else DEFAULT_URL}{path}")
    serves, asks = ("opsin serve", "opsin") if CHECKOUT is None else ("make serve", ".venv/bin/opsin")
    console.print(f"`{serves}` keeps the service up on {DEFAULT_URL}, `{asks} classify FILE …` asks it.")


def wait_for_interrupt(console: Console) -> None:
    """Until Ctrl-C. Waits for the signal itself: KeyboardInterrupt is lost where it strikes a finalizer."""
    from server.processes.os_process import StopSignals

    signals = StopSignals()
    console.print("Staying up; Ctrl-C stops it.")
    signals.wait()
