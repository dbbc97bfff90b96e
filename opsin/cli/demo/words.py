"""The part of `opsin demo` on zero-shot classification: drawings and words in several languages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin.cli.demo.inpainting import DRAWINGS_FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client

DRAWING_NAMES = ("daisy", "padlock", "umbrella")
"""Drawings that the starter was not trained on, unlike the ladybug."""
LABELS = (
    *("flower", "tree", "lady beetle", "bee", "umbrella", "raincoat", "lock", "key"),
    *("Marienkäfer", "parapluie", "cadenas", "цветок"),
)
"""Words in English, German, French and Russian; each drawing has a matching one in two languages."""
TOP_K = 3
"""Number of labels for each drawing."""


def show_words(client: Client, console: Console) -> None:
    """Score each drawing against the labels, and print a table."""
    from opsin.cli.classify import label_table

    model = next(model for model in client.models() if model.task == "zero-shot")
    files = [DRAWINGS_FOLDER / f"{name}.png" for name in DRAWING_NAMES]
    results = [client.zero_shot(file, LABELS, model=model.id, top_k=TOP_K) for file in files]
    console.print(f"\nBest of {len(LABELS)} words in four languages for each drawing, by {model.id}: {', '.join(LABELS)}")
    console.print(label_table(zip((file.name for file in files), results, strict=True)))
