"""Pictures of a reconstruction: what was seen and what was made of it, from three fixed directions.

    python -m training.evaluation.reconstruction.turntable BUNDLE IMAGE OUTPUT

IMAGE is one of `training.starters.captures`: NAME.png with NAME-depth.png, NAME-mask.png and NAME.json beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models import bundle
from models.bundle import Bundle, BundleError
from models.mcc.model import MCC
from models.mcc.queries import cube_grid, reconstruct
from models.mcc.scenes import View, view_of_capture
from models.registry import architectures, read_config
from models.spec import Space
from training import starting
from training.data.rgbd import unprojected
from training.errors import TrainingError
from training.starters.renders.meshes import Bytes
from training.starters.renders.raster import Floats

DIRECTIONS = (0.0, 50.0, 100.0)
"""Degrees that the camera has gone around the object: where the photograph was taken from, then to its right and past its side."""
_ELEVATION = 15.0
_SIDE = 320


def draw(points: Floats, colours: Floats, degrees: float, extent: float, dot: int) -> Bytes:
    """(P, 3) each, in the camera's frame → (side, side, 3), orthographic, on white; dot: side of a point's square in pixels."""
    turn, rise = np.radians(degrees), np.radians(_ELEVATION if degrees else 0.0)
    x = np.cos(turn) * points[:, 0] - np.sin(turn) * points[:, 2]
    z = np.sin(turn) * points[:, 0] + np.cos(turn) * points[:, 2]
    y, z = np.cos(rise) * points[:, 1] - np.sin(rise) * z, np.sin(rise) * points[:, 1] + np.cos(rise) * z
    order = np.argsort(-z)  # the nearest are drawn last
    column, row = (np.round((axis[order] / extent + 1) / 2 * _SIDE).astype(np.int64) - dot // 2 for axis in (x, y))
    shade = 1 - 0.35 * np.clip((z[order, None] / extent + 1) / 2, 0, 1)  # what is far is darker
    painted = np.round(255 * np.clip(colours[order], 0, 1) * shade).astype(np.uint8)
    canvas = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    for down in range(dot):
        for right in range(dot):
            inside = (row + down >= 0) & (row + down < _SIDE) & (column + right >= 0) & (column + right < _SIDE)
            canvas[row[inside] + down, column[inside] + right] = painted[inside]
    return canvas


def network_of(found: Bundle) -> MCC:
    """Raises BundleError or TrainingError."""
    architecture = architectures().get(found.spec.architecture)
    model = None if architecture is None else architecture.build(read_config(architecture.config, found.spec.config))
    if not isinstance(model, MCC):
        raise BundleError(f"{found.path}: architecture {found.spec.architecture} reconstructs nothing")
    model.load_state_dict(starting.read_weights(found.path))
    return model.float().eval()


def view_of(file: Path, model: MCC, space: Space) -> View:
    """As the service makes one of the same files."""
    rgb = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).float() / 255
    depth = torch.from_numpy(np.asarray(Image.open(_beside(file, "-depth.png"))).astype(np.float32) / 1000)
    mask = torch.from_numpy(np.array(Image.open(_beside(file, "-mask.png")).convert("L")))
    camera = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    points = unprojected(depth, (camera["fx"], camera["fy"]), (camera["cx"], camera["cy"]))
    config = model.config
    return view_of_capture(rgb, points, mask, image_size=config.image_size, seen_size=config.seen_size, margin=space.margin)


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.stem + ending)


@torch.inference_mode()
def contact_sheet(model: MCC, view: View, space: Space) -> tuple[Bytes, int]:
    """Seen points above, reconstruction below, by `DIRECTIONS`; and the number of reconstructed points."""
    cloud = reconstruct(model, model.remember(model.encode(view.image, view.seen)), cube_grid(space.extent, space.spacing))
    seen = view.seen[0]  # (n, n, 3)
    shown = torch.nn.functional.interpolate(view.image, size=seen.shape[:2], mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    valid = seen.isfinite().all(dim=-1)
    rows = [
        [draw(points.numpy(), colours.numpy(), degrees, space.extent, 4) for degrees in DIRECTIONS]
        for points, colours in ((seen[valid], shown[valid]), (cloud.points, cloud.colours))
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows]), len(cloud.points)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation.reconstruction.turntable", description="Show what a bundle makes of a photograph."
    )
    parser.add_argument("bundle", type=Path, help="folder, such as bundles/reconstruct/1.0.0")
    parser.add_argument("image", type=Path, help="NAME.png of `python -m training.starters.captures`")
    parser.add_argument("output", type=Path, help="a PNG")
    given = parser.parse_args(arguments)
    try:
        found = bundle.read(given.bundle)
        model = network_of(found)
        space = found.spec.space or Space()
        image, count = contact_sheet(model, view_of(given.image, model, space), space)
    except (BundleError, TrainingError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    Image.fromarray(image).save(given.output)
    print(f"{given.output}: {count:,} points; seen above, reconstructed below; {', '.join(f'{d:g}°' for d in DIRECTIONS)} around")
    return 0


if __name__ == "__main__":
    sys.exit(main())
