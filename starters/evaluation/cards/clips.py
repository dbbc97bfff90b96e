"""Section of a README on the quality of camera-move classification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from models.bundle import BundleSpec
from training.evaluation.cards.figures import share, table

_BASELINES = {
    "one frame": "the middle frame alone, repeated",
    "shuffled frames": "the same frames in another order",
    "optical flow": "optical flow (Farneback), a similarity fitted to each step by RANSAC, read by a random forest",
}


def section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["clips"], spec.provenance["data"]
    yield from (
        "Turns are those of the camera, seen from behind it. In a second, a camera that slides looks like one that turns, and one that",
        "walks ahead like a lens that zooms: `pan`, `tilt` and `zoom` mean both. A clip of several moves gets the mean of its views.",
        "",
        "## Data",
        "",
        "Trained on clips that are made up anew for every sample: a camera that moves over a picture or through a room whose walls are",
        "pictures, with cutouts in front, some of which move by themselves; bars, captions, light, noise and codecs. No clip was filmed.",
        "",
        *(f"- {row['name']} {row['version']}: {row['license']}." for row in data["packages"]),
        "",
        f"Pictures by part: {', '.join(f'{name} {count}' for name, count in data['pictures'].items())}.",
        "",
        "## Quality",
        "",
        f"Judged once, as the service looks at videos, on {found['videos']} made-up videos of pictures that were not trained on,",
        "encoded by three codecs at 10 to 60 frames a second. ± is two standard errors; a difference is paired.",
        "",
        f"The primary figure, fixed before training: **{share(found['network'])}** are named right. Expected calibration error",
        f"(15 bins): {100 * found['calibration_error']:.1f} %.",
        "",
    )
    counts = ("right", "optical flow", "told as something else")
    yield from _baselines(found, found["videos"])
    yield from table(("move", "videos", *counts), ((row["name"], *_cells(row)) for row in found["by_move"]))
    yield from (
        "### In a game",
        "",
        f"{found['game']['clips']} clips of ViZDoom 1.3.2 (Freedoom), whose player turns and walks; nothing of it was trained on",
        f"or is shipped: **{share(found['game']['network'])}** are named right.",
        "",
    )
    yield from _baselines(found["game"], found["game"]["clips"])
    rows = ((row["name"], row["move"], *_cells(row)) for row in found["game"]["by_action"])
    yield from table(("the player", "to be named", "clips", *counts), rows)


def _baselines(found: Mapping[str, Any], count: int) -> Iterator[str]:
    rivals = ((_BASELINES[name], share(row["accuracy"]), share(row["gain"])) for name, row in found["baselines"].items())
    head = ("by", f"of {count} right", "this network is better by")
    yield from table(head, (("this network", share(found["network"]), ""), *rivals))


def _cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    others = ", ".join(f"{name} {count}" for name, count in row["told_as"].items())
    return row["videos"], row["right"], row["optical flow"], others
