"""Reading of files that others wrote: nothing in them is executed."""

from __future__ import annotations

import argparse
import collections
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from models.published import t5x


class _Inert:
    """Stands for a class of a configuration library: what such an object held is never looked at."""

    def __init__(self, *ignored: Any) -> None:
        pass


OMEGACONF = ("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode")

ALLOWED: list[Any] = [
    argparse.Namespace,
    *(dict, list, set, int, collections.defaultdict),
    (_Inert, "typing.Any"),
    *((type(name, (_Inert,), {}), f"omegaconf.{name}") for name in OMEGACONF),
    (collections.OrderedDict, "yacs.config.CfgNode"),
]
"""What a checkpoint may hold besides tensors: MAE's training code keeps its arguments as a Namespace, Lightning its hyper-parameters as
omegaconf (LART) or yacs (HMR2) has them. A pair names the harmless class that is made instead."""

WRAPPERS = ("model", "model_state", "state_dict", "target")
"""Where training code puts the weights among optimiser, epoch and arguments; `target` in a T5X checkpoint written as a torch file."""

DESCRIPTION = ("format", "config", "cfg")


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message is one sentence for its owner."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a `.safetensors` or torch file, by their published names: flat, or under one of WRAPPERS. A folder is one of T5X.

    Raises CheckpointError.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__} where a dict of tensors is needed")
    weights = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    strangers = [str(key) for key, value in weights.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers or not weights:
        what = f"{', '.join(strangers[:5])} is no tensor" if strangers else "it is empty"
        raise CheckpointError(f"{path}: no state dict, neither flat nor under {' or '.join(WRAPPERS)}: {what}")
    return dict(weights)


def read_description(path: Path) -> dict[str, Any]:
    """What a file says about its model besides the weights: its `format` and `config`, or SlowFast's `cfg`. Raises CheckpointError.

    In a torch file they stand beside the weights; in a safetensors file in the metadata, the config as JSON.
    """
    if path.is_dir():
        return {}
    if path.suffix != ".safetensors":
        content = _load(path)
        return {key: content[key] for key in DESCRIPTION if key in content} if isinstance(content, Mapping) else {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        config = {"config": json.loads(metadata["config"])} if "config" in metadata else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error})") from error
    return {key: metadata[key] for key in DESCRIPTION if key in metadata} | config


def _read_folder(path: Path) -> dict[str, Tensor]:
    folder = t5x.find(path)
    if folder is None:
        raise CheckpointError(f"{path}: a folder, and none of T5X, which has a file {t5x.INDEX} or a folder {t5x.INDEX}_STEP")
    try:
        return t5x.read(folder)
    except t5x.T5XError as error:
        raise CheckpointError(str(error)) from error


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged, or no safetensors file ({error})") from error
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit:
            raise CheckpointError(f"{path}: refused, since it holds {culprit[1]} and may hold only weights") from error
        raise CheckpointError(f"{path}: {_part_of_t5x(path) or f'damaged, or no torch file ({type(error).__name__})'}") from error


def _part_of_t5x(path: Path) -> str | None:
    """What to do with what was downloaded of T5X where that is no folder yet; None for any other file."""
    if path.name == t5x.INDEX:
        return "the index of a T5X checkpoint: name its folder"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(Path(name).name == t5x.INDEX for name in archive.namelist()):
                return "an archive of a T5X checkpoint: unpack it and name the folder"
    return None
