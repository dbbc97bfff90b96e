"""Reading of foreign files, of which nothing is executed."""

from __future__ import annotations

import argparse
import codecs
import collections
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from models import hub_files
from models.checkpoints import t5x


class _Inert:
    """Replacement of a configuration library's class: the content of such an object is never used."""

    def __init__(self, *ignored: Any) -> None:
        pass


OMEGACONF = ("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode")

ALLOWED_CLASSES: list[Any] = [
    argparse.Namespace,
    *(dict, list, set, int, collections.defaultdict),
    (_Inert, "typing.Any"),
    *((type(name, (_Inert,), {}), f"omegaconf.{name}") for name in OMEGACONF),
    (collections.OrderedDict, "yacs.config.CfgNode"),
]
"""Classes that a checkpoint may contain in addition to tensors: MAE's training code stores its arguments as a Namespace, Lightning its
settings as omegaconf (LART) or yacs (HMR2) has them. A pair names the harmless class that is made instead."""

AVERAGED_KEYS = ("state_dict_ema", "model_ema")
"""Keys under which training code stores the running average of the weights (timm, DeiT), which its authors evaluate and release."""
WRAPPER_KEYS = ("model", "model_state", "state_dict", "target")
"""Keys under which training code stores the weights, next to optimiser, epoch and arguments; `target` is T5X's, in a torch file."""

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of all names by data-parallel training and by `torch.compile`."""

DESCRIPTION_KEYS = ("format", "config", "cfg", "pretrained_cfg")


class CheckpointError(Exception):
    """Error of a checkpoint that cannot be used; the message is one sentence for its owner."""


class InvalidSetting(CheckpointError):
    """Error of a setting made by hand, not of the checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    weights: dict[str, Tensor]
    """Published name → tensor."""
    description: dict[str, Any]
    """The file's own description of its model: `format` and `config`, SlowFast's `cfg`, or timm's `pretrained_cfg`."""
    notes: tuple[str, ...] = ()
    """Choices and changes made while reading, one sentence each."""
    labels: tuple[str, ...] = ()
    """Names of the classes from files next to the weights."""
    license: str = ""
    """Licence from those files; empty if they declare none."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a `.safetensors` or torch file, whose weights are flat or under one of AVERAGED_KEYS or WRAPPER_KEYS, or a T5X folder.

    The description is next to the weights in a torch file, and in the metadata of a safetensors file, the config as JSON. Raises
    CheckpointError.
    """
    if path.is_dir():
        return Checkpoint(_read_folder(path), {})
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__} where a dict of tensors is needed")
    description = _metadata(path) if path.suffix == ".safetensors" else {key: content[key] for key in DESCRIPTION_KEYS if key in content}
    wrapper, left = _find_wrapper(content)
    weights = content if wrapper is None else content[wrapper]
    invalid = [str(key) for key, value in weights.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if invalid or not weights:
        problem = f"{', '.join(invalid[:5])} is no tensor" if invalid else "it is empty"
        raise CheckpointError(f"{path}: no state dict, neither flat nor under {' or '.join(WRAPPER_KEYS)}: {problem}")
    notes = [f"weights read from {wrapper}, the running average; {left} is left out"] if left else []
    renamed = dict(weights)
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in renamed):
            renamed = {key.removeprefix(prefix): value for key, value in renamed.items()}
            notes.append(f"the prefix {prefix} is taken off every name")
    return Checkpoint(renamed, description, tuple(notes))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    return open_checkpoint(path).weights


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError."""
    try:
        return hub_files.read_json(file)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _find_wrapper(content: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the key of the weights, None if they are flat; and the key of other weights that are ignored in favour of them."""
    wrappers = [key for key in (*AVERAGED_KEYS, *WRAPPER_KEYS) if isinstance(content.get(key), Mapping)]
    averaged = bool(wrappers) and wrappers[0] in AVERAGED_KEYS
    plain_wrappers = [key for key in wrappers if key not in AVERAGED_KEYS]
    return (wrappers[0] if wrappers else None), (plain_wrappers[0] if averaged and plain_wrappers else None)


def _metadata(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        config = {"config": json.loads(metadata["config"])} if "config" in metadata else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error})") from error
    return {key: metadata[key] for key in DESCRIPTION_KEYS if key in metadata} | config


def _read_folder(path: Path) -> dict[str, Tensor]:
    folder = t5x.find_checkpoint(path)
    if folder is None:
        raise CheckpointError(f"{path}: a folder, and none of T5X, which has a file {t5x.INDEX} or a folder {t5x.INDEX}_STEP")
    try:
        return t5x.read(folder)
    except t5x.T5XError as error:
        raise CheckpointError(str(error)) from error


def _load(path: Path) -> Any:
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path}: a graph, and no checkpoint of weights; docs/bundles.md says how a bundle is made of it")
    kind = "safetensors" if path.suffix == ".safetensors" else "torch"
    if problem := _describe_non_checkpoint(path):
        raise CheckpointError(f"{path}: damaged, or no {kind} file: {problem}")
    if kind == "safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged, or no safetensors file ({error})") from error
    try:
        with (
            torch.serialization.safe_globals(ALLOWED_CLASSES),
            warnings.catch_warnings(action="ignore"),
        ):  # warnings about pickles, which are refused here
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit:
            raise CheckpointError(f"{path}: refused, since it holds {culprit[1]} and may hold only weights") from error
        raise CheckpointError(f"{path}: {_advise_on_t5x(path) or f'damaged, or no torch file ({type(error).__name__})'}") from error


def _describe_non_checkpoint(path: Path) -> str | None:
    """Describe a file that is empty or text; return None for any other."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, which `git lfs pull` replaces by the file"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character in "\r\n\t" for character in text):
        return None
    return f"it is text, which begins {text.split(chr(10))[0].strip()[:40]!r}"


def _advise_on_t5x(path: Path) -> str | None:
    """Return advice for a file that is part of a T5X checkpoint or an archive of one; None for any other file."""
    if path.name == t5x.INDEX:
        return "the index of a T5X checkpoint: name its folder"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(Path(name).name == t5x.INDEX for name in archive.namelist()):
                return "an archive of a T5X checkpoint: unpack it and name the folder"
    return None
