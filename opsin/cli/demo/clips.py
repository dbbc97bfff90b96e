"""The part of `opsin demo` that labels whole clips: how the camera moves in three of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin.engine import FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client

NAMES_MOVES = "clips"
"""The starter whose labels are camera moves."""
MOVES = tuple(FOLDER / "server" / "playground" / "samples" / f"{name}.mp4" for name in ("colosseum", "otters", "lake"))


def show_clips(client: Client, console: Console) -> None:
    """Classify each clip and print a table."""
    from opsin.cli.classify import label_table

    found = [client.classify(video=clip, model=NAMES_MOVES) for clip in MOVES]
    console.print(f"\nHow the camera moves, as {found[0].model}@{found[0].version} sees it")
    console.print(label_table(zip((clip.name for clip in MOVES), found, strict=True)))
