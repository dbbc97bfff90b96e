"""An ONNX graph of somebody else becomes a bundle: a classifier or encoder of images, or a network that fills holes or tells depth.

A confined process reads, checks and runs it first (`models.systems.onnx.trial`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto
from pydantic import ValidationError

from models.bundle import FILE_PATTERN, GRAPH_FILE, MAX_FILES, BundleSpec
from models.bundle_files import sha256_of
from models.bundle_schema import MAX_SIDE, FileDigest
from models.checkpoints import model_card
from models.checkpoints.checkpoint_file import CheckpointError, InvalidSetting
from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, squeeze
from models.checkpoints.import_settings import parse
from models.registry import architectures, read_config
from models.systems.onnx import beside, image_networks
from models.systems.onnx.beside import Purpose
from models.systems.onnx.depth_estimator import DepthGraphConfig, check_depth
from models.systems.onnx.inpainter import InpaintGraphConfig, check_inpainting
from models.systems.onnx.signature import PACK, dimensions, inputs_of, read_graph
from models.systems.onnx.trial import Trial, try_graph

SUFFIX = ".onnx"
PREPROCESS = ("mean", "std", "interpolation")
"""Settings that are not fields of the config, of networks that fill holes or tell depth."""


def import_graph(
    file: Path,
    *,
    overrides: Mapping[str, str],
    name: str,
    version: str,
    license: str | None,
    purpose: Purpose | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[BundleSpec, dict[str, Path]]:
    """The spec of a bundle whose weights are `file`, still to be sealed by `bundle.write`, and the further files that hold its weights.

    overrides: as `mask` = "hole", or `image_size` = "224", which the graph does not tell. purpose: None to infer it. labels: None for those
    that files in the same folder state. Raises CheckpointError with a sentence for the user, WrongSetting where a setting is wrong.
    """
    try:
        given = parse(overrides)
        chosen = purpose or ("classify" if labels is not None else None)
        stated = beside.read(file, given)
        output = _output(given, chosen)
        trial = try_graph(
            file,
            image_size=_size(given),
            stated_size=stated.image_size,
            largest_side=MAX_SIDE,
            output=output,
            of_image=chosen is not None or output is not None,
        )
        files = _files(file, trial)
        if trial.purpose == "onnx":
            fields = image_networks.fields(file, trial, stated, chosen, labels, given)
        else:
            fields = _others(file, trial, given, license)
        provenance = {"file": file.name, "sha256": sha256_of(file), "family": trial.purpose, "set": dict(overrides)}
        return BundleSpec(
            name=name,
            version=version,
            architecture=trial.purpose,
            license=license or next(filter(None, map(model_card.read_licence, beside.places(file))), "unknown"),
            weights=FileDigest(sha256="0" * 64, bytes=0),
            provenance=provenance | fields.pop("provenance", {}),
            **fields,
        ), files
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSetting(f"{'.'.join(map(str, first['loc'])) or 'bundle'}: {first['msg'].removeprefix('Value error, ')}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _size(given: Mapping[str, Any]) -> int | None:
    size = given.get("image_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise InvalidSetting(f"image_size {size!r}: an integer is needed, such as 224")
    return size


def _output(given: Mapping[str, Any], purpose: Purpose | None) -> str | None:
    """The name of an output. Of a network that tells depth it is a setting of another meaning."""
    name = given.get("output")
    return None if name is None or (purpose is None and name in ("disparity", "depth")) else str(name)


def _files(file: Path, trial: Trial) -> dict[str, Path]:
    """Raises ValueError for weights in files that a bundle cannot hold."""
    odd = [name for name in trial.files if not FILE_PATTERN.fullmatch(name) or name == GRAPH_FILE]
    if odd or len(trial.files) > MAX_FILES:
        what = f"{odd[0]!r}, whose name a bundle cannot keep" if odd else f"{len(trial.files)} files, and a bundle holds {MAX_FILES}"
        raise ValueError(f"its weights lie in {what}; {PACK}")
    return {name: file.parent / name for name in trial.files}


def _others(file: Path, trial: Trial, given: dict[str, Any], license: str | None) -> dict[str, Any]:
    """Fields of a network that fills holes or tells depth."""
    architecture = trial.purpose
    _, model = read_graph(file)
    config = _config(model, architecture, {key: value for key, value in given.items() if key not in PREPROCESS})
    pictures = squeeze(config.image_size).model_dump() | _range(architecture) | {key: given[key] for key in PREPROCESS if key in given}
    if license is None:
        raise ValueError("say under which licence you got the weights, as in --license MIT")
    return {
        "task": architectures()[architecture].purpose.task(config),
        "config": dataclasses.asdict(config),
        "preprocess": pictures,
        "preset": "draft" if architecture == "onnx_inpaint" else None,  # one pass, whatever sampler is asked for
    }


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
        encoder = "; --as embed takes it for an encoder of images"
        _need(given, "output", "disparity (larger is nearer)", "depth (larger is farther)", more=encoder)
        depth: DepthGraphConfig = read_config(DepthGraphConfig, given)
        check_depth(model, depth.image_size)
        return depth
    _need(given, "mask", "hole (1 is missing)", "known (1 is there)")
    if model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT:
        _need(given, "answer", "bytes (0 to 255)", "unit (0 to 1)")
    inpaint: InpaintGraphConfig = read_config(InpaintGraphConfig, given)
    check_inpainting(model, inpaint.image_size)
    return inpaint


def _need(given: Mapping[str, Any], name: str, *values: str, more: str = "") -> None:
    if name not in given:
        raise ValueError(f"the graph does not tell its {name}: --set {name}= is one of {' and '.join(values)}{more}")
