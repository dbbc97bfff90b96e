"""`opsin demo`: run every task once on a temporary service."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsin.cli.demo.labels import is_sound_classifier, show_actions, show_sounds
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

MERGING_STARTER = "flags"
"""The starter with token merging; without it the default model is used."""
IMAGES_FOLDER = FOLDER / "docs" / "pictures" / "flags"
ROUNDS = 3
DEFAULT_URL = "http://127.0.0.1:8000"
"""`opsin serve` is found there."""


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the service running afterwards, until Ctrl-C.")] = False,
    bundles: Annotated[Path | None, typer.Option(help="Folder of bundles. [default: the starters]")] = None,
    seconds: Annotated[float, typer.Option(help="Length of each measured round, in seconds.", min=0.1, max=60)] = 1.5,
    output: Annotated[Path, typer.Option("-o", "--output", help="Output folder.")] = Path("opsin-demo"),
    cache: Annotated[Path | None, typer.Option(help="Folder for downloads. [default: data in OPSIN_CACHE]")] = None,
    svg: Annotated[Path | None, typer.Option(help="Also save the output as an SVG image.")] = None,
) -> None:
    """Start a temporary service, run every task once, measure the effect of token merging, then stop.

    Only the video needs the network: it is downloaded once, and skipped if that fails.
    """
    require_processes("demo")
    enter()
    from opsin.cli.demo.inpainting import show_inpainting
    from opsin.cli.demo.labels import MOVES_STARTER, show_clips, show_words
    from opsin.cli.demo.reconstruction import show_reconstruction
    from opsin.cli.shared.temporary_service import temporary_service
    from opsin.client import Client
    from opsin.errors import OpsinError

    bundles = bundles or starters_folder()
    if not any(bundles.glob("*/*/bundle.json")):
        raise UsageError(f"demo: {bundles} contains no bundles; name another folder with --bundles")
    console, output = make_console(record=svg is not None), relative_to_cwd(output)
    images = sorted(IMAGES_FOLDER.glob("*.png"))
    if not images:
        raise CommandError(f"demo: {IMAGES_FOLDER} contains no images")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"demo: {output}: cannot be created ({error.strerror}); name another folder with --output") from error
    console.print("Starting the queue, a gateway and a worker …", style="dim")
    try:
        with pending_interrupt() as stop_if_interrupted, temporary_service(bundles) as url, Client(url) as client:
            stop_if_interrupted()
            model = show_images(client, images, console)
            stop_if_interrupted()
            show_throughput(client, model, images, seconds, console)
            data = cache or (settings_of(None).cache_folder or output) / "data"
            parts: list[tuple[Callable[[Model], bool], Callable[[Model], None]]] = [
                (lambda model: model.task == "zero-shot", lambda model: show_words(client, model, console)),
                (lambda model: model.task == "inpaint", lambda model: show_inpainting(client, model, output, console)),
                (_is_default_reconstructor, lambda model: show_reconstruction(client, model, output, console)),
                (is_sound_classifier, lambda model: show_sounds(client, model, console)),
                (lambda model: model.name == MOVES_STARTER, lambda model: show_clips(client, model, console)),
                (lambda model: model.route == "actions", lambda model: show_actions(client, model, data, output, console)),
            ]
            for is_suitable, show in parts:
                stop_if_interrupted()
                if served := next(filter(is_suitable, client.models()), None):
                    show(served)
            stop_if_interrupted()
            if keep:
                show_addresses(url, console)
                wait_for_interrupt(console)
    except OpsinError as error:
        raise CommandError(f"demo: {error}") from error
    if not keep:
        show_next_steps(console)
    if svg is not None:
        console.save_svg(str(svg), title="make demo")


def _is_default_reconstructor(model: Model) -> bool:
    return model.task == "reconstruct" and bool(model.details["default"])


def starters_folder() -> Path:
    """Return the folder of the starters, in the checkout or in the package `opsin-starters`. Raises UsageError if there is none."""
    folder = CHECKOUT / "bundles" if CHECKOUT is not None else settings_of(None).starters_folder
    if folder is None:
        raise UsageError(
            "demo: the starters are missing: install their wheel, opsin_starters-*.whl, unset OPSIN_STARTERS, "
            "or name a folder with --bundles"
        )
    return folder


def relative_to_cwd(path: Path) -> Path:
    """Return the path relative to the working folder, as the user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def show_images(client: Client, images: list[Path], console: Console) -> Model:
    """Classify the images one by one, print a table, and return the model."""
    from opsin.cli.classify import label_table

    # also while it is loading: the service is ready when its default models are, and requests for others wait
    flags = next((served.id for served in client.models() if served.name == MERGING_STARTER and served.state in ("ready", "loading")), None)
    results = [client.classify(image, model=flags) for image in images]
    model = client.model(f"{results[0].model}@{results[0].version}")
    console.print(f"\nLabels, by {model.id}")
    console.print(label_table(zip((image.name for image in images), results, strict=True)))
    return model


def show_throughput(client: Client, model: Model, images: list[Path], seconds: float, console: Console) -> None:
    """Measure images per second with merging off and at the model's default rung, and print both and their ratio."""
    from rich.progress import Progress

    from opsin.cli.demo.throughput import CLIENTS, IMAGES_PER_REQUEST, compare

    rung = model.details.get("default_rung")
    if not rung:
        console.print(f"{model.id} has no rung to compare with merging off.")
        return
    with Progress(console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Measuring", total=2 * (ROUNDS + 1))
        measurements = compare(
            client.url,
            model.id,
            [image.read_bytes() for image in images],
            ["off", rung],
            rounds=ROUNDS,
            seconds=seconds,
            tick=lambda: progress.advance(task),
        )
    unmerged, merged = measurements["off"], measurements[rung]
    figures = ("Images/s", "Range", "Network per image", "Images per batch", "Batches at a time")
    table = make_table("Merging", *figures, right=figures)
    for name, measurement in measurements.items():
        table.add_row(
            name,
            f"[bold]{measurement.rate:.0f}[/]",
            f"{measurement.rates[0]:.0f}..{measurement.rates[-1]:.0f}",
            f"{measurement.milliseconds:.1f} ms",
            f"{measurement.batch_size:.1f}",
            f"{measurement.batches_at_a_time:.2f}",
        )
    console.print(f"\nThroughput: {CLIENTS} clients, {IMAGES_PER_REQUEST} images per request, {ROUNDS} × {seconds:g} s each, alternating")
    console.print(table)
    console.print(
        f"[bold]{merged.rate / unmerged.rate:.2f}×[/] the images per second with merging, "
        f"{unmerged.milliseconds / merged.milliseconds:.2f}× in the network alone; decoding, HTTP, the queue and these clients share the "
        "machine with it."
    )


def show_next_steps(console: Console) -> None:
    """Print how to run the service, once the temporary one has stopped."""
    serve, command = ("opsin serve", "opsin") if CHECKOUT is None else ("make serve", ".venv/bin/opsin")
    console.print(f"\nTo use the service: `{serve}` runs it until Ctrl-C. Then open {DEFAULT_URL} for the playground,")
    console.print(f"or classify an image of your own in another terminal: `{command} classify FILE`.")


def show_addresses(url: str, console: Console) -> None:
    """Print the URLs of the pages of the service that respond: the playground may be disabled."""
    import httpx2

    console.print()
    for name, path in (("Playground", "/"), ("API docs", "/docs"), ("Metrics", "/metrics")):
        with suppress(httpx2.HTTPError):
            httpx2.get(url + path, timeout=10).raise_for_status()
            console.print(f"{name:<11} {url}{path}")


def wait_for_interrupt(console: Console) -> None:
    """Wait for Ctrl-C. Waits for the signal itself, because a KeyboardInterrupt raised in a finalizer is lost."""
    from server.processes.os_process import StopSignals

    signals = StopSignals()
    console.print("The service keeps running; Ctrl-C stops it.")
    signals.wait()
