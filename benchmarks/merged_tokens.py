"""Which patches merged: `python -m benchmarks.merged_tokens PICTURE … -o merged.png` paints each token's region in its mean colour.

Above, the pictures as they are; below, what is left of them after the last block of the network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from models import bundle
from models.bundle import BundleSpec
from models.layers.forward import normalise
from models.layers.token_merging import paint_merged_tokens
from models.loading import LoadedModel, load
from models.merge_schedule import MergeSchedule
from training.data import load_image

ENLARGED = 3
"""Side in pixels of the drawing of one pixel of the model's input."""
GAP = 12
HEIGHT = 224


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merged_tokens", description="Paint which patches of pictures merged.")
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/flags/1.0.0"), help="folder of a classifier (default: %(default)s)")
    parser.add_argument("--rung", help="of the bundle's ladder (default: its default rung)")
    options = parser.parse_args()
    read = bundle.read(options.bundle)
    schedule = schedule_of(read.spec, options.rung)
    model = load(read, packed=True)
    columns = []
    for path in options.pictures:
        image = load_image.open_on_white(path)
        merged, tokens_in, tokens_out = paint(model, image, schedule)
        print(f"{path.name}: {tokens_in} → {tokens_out} tokens")
        size = (round(image.width * HEIGHT / image.height), HEIGHT)
        columns.append((image.resize(size, Image.Resampling.LANCZOS), merged.resize(size, Image.Resampling.LANCZOS)))
    sheet(columns).save(options.output)


def schedule_of(spec: BundleSpec, name: str | None) -> MergeSchedule:
    rung = spec.rung(name or spec.default_rung or "")
    if rung is None:
        raise SystemExit(f"{spec.id}: no rung {name!r}; its rungs are {', '.join(rung.name for rung in spec.ladder) or 'none'}")
    return rung.merge


def paint(model: LoadedModel, image: Image.Image, schedule: MergeSchedule) -> tuple[Image.Image, int, int]:
    """Draw the model's input with each token's region in one colour. Return it with the number of tokens before and after."""
    spec = model.spec
    preprocess = spec.pictures
    pixels = torch.from_numpy(load_image.to_model_size(image, preprocess))  # (S, S, 3)
    with torch.inference_mode():
        answer = model.model(normalise(pixels.unsqueeze(0), preprocess, torch.float32), merge=schedule, trace=True)
    larger = preprocess.model_copy(update={"image_size": preprocess.image_size * ENLARGED, "short_side": preprocess.short_side * ENLARGED})
    seen = torch.from_numpy(load_image.to_model_size(image, larger))
    source = torch.eye(answer.tokens_in) if answer.source is None else answer.source[0]
    merged = paint_merged_tokens(seen, source, spec.config["patch_size"] * ENLARGED, special=model.protected_tokens)
    return Image.fromarray(merged.numpy()), answer.tokens_in, answer.tokens_out


def sheet(columns: Sequence[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Pictures above, what is left of them below."""
    width = sum(above.width for above, _ in columns) + GAP * (len(columns) - 1)
    page = Image.new("RGB", (width, 2 * HEIGHT + GAP), "white")
    left = 0
    for above, below in columns:
        page.paste(above, (left, 0))
        page.paste(below, (left, HEIGHT + GAP))
        left += above.width + GAP
    return page


if __name__ == "__main__":
    main()
