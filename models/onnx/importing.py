"""An ONNX graph that somebody else trained becomes a bundle: networks that fill holes, and networks that tell depth, by their signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto

from models.bundle import BundleSpec
from models.onnx.depth import DepthGraphConfig, check_depth, is_depth
from models.onnx.graph import dimensions, inputs_of, read_graph
from models.onnx.inpainting import InpaintGraphConfig, check_inpainting, is_inpainting
from models.published.container import CheckpointError
from models.published.family import IMAGENET_MEAN, IMAGENET_STD, squeeze
from models.published.settings import parse
from models.registry import architectures, read_config
from models.sealing import sha256_of
from models.spec import Weights

SUFFIX = ".onnx"
PREPROCESS = ("mean", "std", "interpolation")
"""Settings that are not fields of the config."""


def import_graph(file: Path, *, overrides: Mapping[str, str], name: str, version: str, license: str) -> BundleSpec:
    """The spec of a bundle whose weights are `file`, still to be sealed by `bundle.write`. overrides: as `mask` = "hole", which the graph
    does not tell. Raises CheckpointError with a sentence for the user."""
    try:
        _, model = read_graph(file)
        architecture = "onnx_inpaint" if is_inpainting(model) else "onnx_depth" if is_depth(model) else None
        if architecture is None:
            raise ValueError(
                "it neither fills holes (an image (1, 3, S, S) and a mask (1, 1, S, S)) nor tells depth (one image, one channel); "
                "docs/bundles.md says how a classifier becomes a bundle"
            )
        given = parse(overrides)
        config = _config(model, architecture, {key: value for key, value in given.items() if key not in PREPROCESS})
        pictures = squeeze(config.image_size).model_dump() | _range(architecture) | {key: given[key] for key in PREPROCESS if key in given}
        if license == "unknown":
            raise ValueError("say under which licence you got the weights, as in --license MIT")
        return BundleSpec(
            name=name,
            version=version,
            task=architectures()[architecture].purpose.task(config),
            architecture=architecture,
            config=dataclasses.asdict(config),
            preprocess=pictures,
            preset="draft" if architecture == "onnx_inpaint" else None,  # one pass, whatever sampler is asked for
            license=license,
            provenance={"file": file.name, "sha256": sha256_of(file), "family": architecture, "set": dict(overrides)},
            weights=Weights(sha256="0" * 64, bytes=0),
        )
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _range(architecture: str) -> dict[str, Any]:
    """Networks that fill holes take images from 0 to 1."""
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if architecture == "onnx_depth" else {"mean": (0, 0, 0), "std": (1, 1, 1)}


def _config(model: ModelProto, architecture: str, given: dict[str, Any]) -> Any:
    """Raises ValueError for what neither the graph nor the user tells."""
    sides = {side for value in inputs_of(model) for side in dimensions(value)[2:] if side}
    if len(sides) == 1:
        given = {"image_size": sides.pop(), **given}
    if "image_size" not in given:
        raise ValueError("it takes images of several sizes: set one, as in --set image_size=512")
    if architecture == "onnx_depth":
        _need(given, "output", "disparity (larger is nearer)", "depth (larger is farther)")
        depth: DepthGraphConfig = read_config(DepthGraphConfig, given)
        check_depth(model, depth.image_size)
        return depth
    _need(given, "mask", "hole (1 is missing)", "known (1 is there)")
    if model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT:
        _need(given, "answer", "bytes (0 to 255)", "unit (0 to 1)")
    inpaint: InpaintGraphConfig = read_config(InpaintGraphConfig, given)
    check_inpainting(model, inpaint.image_size)
    return inpaint


def _need(given: Mapping[str, Any], name: str, *values: str) -> None:
    if name not in given:
        raise ValueError(f"the graph does not tell its {name}: --set {name}= is one of {' and '.join(values)}")
