"""Import of a foreign ONNX graph as a bundle: a classifier or encoder of images, an inpainting network or a depth network.

A confined process reads, checks and runs it first (`models.systems.onnx.trial`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto, TensorProto
from pydantic import ValidationError

from models.bundle import MAX_FILES, BundleSpec, is_further_file
from models.bundle_files import sha256_of
from models.bundle_schema import MAX_SIDE, FileDigest
from models.checkpoints import hf_folder
from models.checkpoints.bundle_fields import parse
from models.checkpoints.checkpoint_file import CheckpointError, InvalidSetting
from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, squeeze
from models.registry import architectures, read_config
from models.systems.onnx import companion_files, image_networks
from models.systems.onnx.companion_files import Purpose
from models.systems.onnx.pixel_networks import DepthGraphConfig, InpaintGraphConfig, check_depth, check_inpainting
from models.systems.onnx.signature import PACK_HINT, dimensions, graph_inputs, read_graph
from models.systems.onnx.trial import Trial, try_graph

SUFFIX = ".onnx"
PREPROCESS_SETTINGS = ("mean", "std", "interpolation")
"""Settings that are not fields of the config, of inpainting and depth networks."""


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
    """Return the spec of a bundle whose weights are `file`, without the digests of `bundle.write`, and the further files of its weights.

    overrides: such as `mask` = "hole", or `image_size` = "224", which the graph does not declare. purpose: None to infer it. labels: None
    for those that files in the same folder declare. Raises CheckpointError with a sentence for the user, InvalidSetting for a wrong
    setting.
    """
    try:
        settings = parse(overrides)
        task = purpose or ("classify" if labels is not None else None)
        companions = companion_files.read_companions(file, settings)
        output = _output(settings, task)
        trial = try_graph(
            file,
            image_size=_size(settings),
            stated_size=companions.image_size,
            largest_side=MAX_SIDE,
            output=output,
            of_image=task is not None or output is not None,
        )
        files = _files(file, trial)
        if trial.purpose == "onnx":
            fields = image_networks.fields(file, trial, companions, task, labels, settings)
        else:
            fields = _other_fields(file, trial, settings, license)
        provenance = {"file": file.name, "sha256": sha256_of(file), "family": trial.purpose, "set": dict(overrides)}
        return BundleSpec(
            name=name,
            version=version,
            architecture=trial.purpose,
            license=license or next(filter(None, map(hf_folder.read_licence, companion_files.companion_folders(file))), "unknown"),
            weights=FileDigest(sha256="0" * 64, bytes=0),
            provenance=provenance | fields.pop("provenance", {}),
            **fields,
        ), files
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSetting(f"{'.'.join(map(str, first['loc'])) or 'bundle'}: {first['msg'].removeprefix('Value error, ')}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _size(settings: Mapping[str, Any]) -> int | None:
    size = settings.get("image_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise InvalidSetting(f"image_size {size!r}: an integer is needed, such as 224")
    return size


def _output(settings: Mapping[str, Any], purpose: Purpose | None) -> str | None:
    """Return the name of an output. For a depth network the setting has another meaning."""
    name = settings.get("output")
    return None if name is None or (purpose is None and name in ("disparity", "depth")) else str(name)


def _files(file: Path, trial: Trial) -> dict[str, Path]:
    """Return the files of the weights. Raises ValueError for files that a bundle cannot contain."""
    invalid_names = [name for name in trial.files if not is_further_file(name)]
    if invalid_names or len(trial.files) > MAX_FILES:
        problem = (
            f"{invalid_names[0]!r}, whose name a bundle cannot keep"
            if invalid_names
            else f"{len(trial.files)} files, and a bundle holds {MAX_FILES}"
        )
        raise ValueError(f"its weights are in {problem}; {PACK_HINT}")
    return {name: file.parent / name for name in trial.files}


def _other_fields(file: Path, trial: Trial, settings: dict[str, Any], license: str | None) -> dict[str, Any]:
    architecture = trial.purpose
    _, model = read_graph(file)
    config = _config(model, architecture, {key: value for key, value in settings.items() if key not in PREPROCESS_SETTINGS})
    preprocess = (
        squeeze(config.image_size).model_dump()
        | _range(architecture)
        | {key: settings[key] for key in PREPROCESS_SETTINGS if key in settings}
    )
    if license is None:
        raise ValueError("say under which licence you got the weights, as in --license MIT")
    return {
        "task": architectures()[architecture].bundle_defaults.task(config),
        "config": dataclasses.asdict(config),
        "preprocess": preprocess,
        "preset": "draft" if architecture == "onnx_inpaint" else None,  # one pass, whatever sampler is requested
    }


def _range(architecture: str) -> dict[str, Any]:
    """Return mean and std; inpainting networks take images from 0 to 1."""
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if architecture == "onnx_depth" else {"mean": (0, 0, 0), "std": (1, 1, 1)}


def _config(model: ModelProto, architecture: str, settings: dict[str, Any]) -> Any:
    """Return the config. Raises ValueError for what neither the graph nor the user declares."""
    sides = {side for value in graph_inputs(model) for side in dimensions(value)[2:] if side}
    if len(sides) == 1:
        settings = {"image_size": sides.pop(), **settings}
    if "image_size" not in settings:
        raise ValueError("it takes images of several sizes: set one, as in --set image_size=512")
    if architecture == "onnx_depth":
        encoder = "; --as embed takes it for an encoder of images"
        _require_setting(settings, "output", "disparity (larger is nearer)", "depth (larger is farther)", hint=encoder)
        depth: DepthGraphConfig = read_config(DepthGraphConfig, settings)
        check_depth(model, depth.image_size)
        return depth
    _require_setting(settings, "mask", "hole (1 is missing)", "known (1 is there)")
    if model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT:
        _require_setting(settings, "answer", "bytes (0 to 255)", "unit (0 to 1)")
    inpaint: InpaintGraphConfig = read_config(InpaintGraphConfig, settings)
    check_inpainting(model, inpaint.image_size)
    return inpaint


def _require_setting(settings: Mapping[str, Any], name: str, *values: str, hint: str = "") -> None:
    if name not in settings:
        raise ValueError(f"the graph does not declare its {name}: --set {name}= is one of {' and '.join(values)}{hint}")
