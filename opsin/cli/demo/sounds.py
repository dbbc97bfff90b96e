"""The part of `opsin demo` that listens: some notes of instruments and drums that the starter was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin.engine import FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client
    from opsin.results import Model

SOUNDS = FOLDER / "server" / "playground" / "samples"


def is_sound_classifier(model: Model) -> bool:
    """Whether it labels sound, and nothing else."""
    return [part["name"] for part in model.details.get("inputs", ())] == ["audio"]


def show_sounds(client: Client, model: str, console: Console) -> None:
    """Name what each sample is and print a table."""
    from opsin.cli.classify import label_table

    files = sorted(SOUNDS.glob("*.flac"))
    found = [client.classify(audio=file, model=model, top_k=3) for file in files]
    console.print(f"\nWhat {model} hears")
    console.print(label_table(zip((file.name for file in files), found, strict=True)))
