"""The part of `opsin demo` on sounds: notes of instruments and drums that the starter was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin.engine import FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client
    from opsin.results import Model

SAMPLES_FOLDER = FOLDER / "server" / "playground" / "samples"


def is_sound_classifier(model: Model) -> bool:
    """Return whether it classifies sound only."""
    return [part["name"] for part in model.details.get("inputs", ())] == ["audio"]


def show_sounds(client: Client, model: str, console: Console) -> None:
    """Classify each sample and print a table."""
    from opsin.cli.classify import label_table

    files = sorted(SAMPLES_FOLDER.glob("*.flac"))
    results = [client.classify(audio=file, model=model, top_k=3) for file in files]
    console.print(f"\nSounds, by {model}")
    console.print(label_table(zip((file.name for file in files), results, strict=True)))
