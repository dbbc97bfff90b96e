"""The part of `opsin demo` that compares drawings with words, in several languages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin.cli.demo.inpainting import DRAWINGS

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client

PICTURES = ("daisy", "padlock", "umbrella")
"""None of which the starter was trained on, as it was on the ladybug."""
LABELS = (
    *("flower", "tree", "lady beetle", "bee", "umbrella", "raincoat", "lock", "key"),
    *("Marienkäfer", "parapluie", "cadenas", "цветок"),
)
"""English, German, French and Russian: each drawing has one in two languages."""
SHOWN = 3
"""Labels of each drawing."""


def show_words(client: Client, console: Console) -> None:
    """Ask which of the same labels fit each drawing best, and print a table."""
    from opsin.cli.classify import label_table

    model = next(model for model in client.models() if model.task == "zero-shot")
    files = [DRAWINGS / f"{name}.png" for name in PICTURES]
    found = [client.zero_shot(file, LABELS, model=model.id, top_k=SHOWN) for file in files]
    console.print(f"\nWhich of {len(LABELS)} words in four languages fit these drawings best, by {model.id}: {', '.join(LABELS)}")
    console.print(label_table(zip((file.name for file in files), found, strict=True)))
