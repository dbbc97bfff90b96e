"""The part of `opsin demo` on clips: the camera moves of three clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin.engine import FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client

MOVES_STARTER = "clips"
"""The starter whose labels are camera moves."""
MOVE_CLIPS = tuple(FOLDER / "server" / "playground" / "samples" / f"{name}.mp4" for name in ("colosseum", "otters", "lake"))


def show_clips(client: Client, console: Console) -> None:
    """Classify each clip and print a table."""
    from opsin.cli.classify import label_table

    results = [client.classify(video=clip, model=MOVES_STARTER) for clip in MOVE_CLIPS]
    console.print(f"\nCamera moves, by {results[0].model}@{results[0].version}")
    console.print(label_table(zip((clip.name for clip in MOVE_CLIPS), results, strict=True)))
