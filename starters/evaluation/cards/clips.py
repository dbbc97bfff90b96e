"""Section of a README on the quality of camera-move classification."""

from __future__ import annotations

from collections.abc import Iterator

from models.bundle import BundleSpec
from training.evaluation.cards.figures import share


def section(spec: BundleSpec) -> Iterator[str]:
    found, data = spec.quality["clips"], spec.provenance["data"]
    flow = found["baselines"]["optical flow"]
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
        f"The primary figure, fixed before training: **{share(found['network'])}** are named right. Optical flow (Farneback), a similarity",
        f"fitted to each step by RANSAC and read by a random forest, names {share(flow['accuracy'])} right; the network is better by",
        f"{share(flow['gain'])}.",
        "",
    )
