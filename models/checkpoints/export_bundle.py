"""Export of a bundle as a checkpoint of a published family, with its key names, layouts and container."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.bundle import GRAPH_FILE, Bundle, BundleSpec
from models.checkpoints import bundle_fields, timm_transform
from models.checkpoints.checkpoint_file import CheckpointError
from models.checkpoints.family import Family, families
from models.checkpoints.fit_family import fit
from models.registry import architectures, read_config


@dataclasses.dataclass(frozen=True)
class ExportedCheckpoint:
    family: str
    tensors: int
    settings: dict[str, Any]
    """Fields of the config and of the inputs that an import cannot infer from the file, and needs as settings."""
    lacks: str
    """Names of what published files contain in addition; empty for nothing."""
    copies: dict[str, Path]
    """Copies of the bundle's further files by their names in the bundle, such as maws.tokenizer.json next to maws.pt."""


def export_bundle(bundle: Bundle, file: Path, family: str | None = None) -> ExportedCheckpoint:
    """Write a bundle's weights as a published checkpoint: torch, or safetensors by the suffix; a folder without a suffix, for families
    that have one (T5X).

    family: None for the one that it was imported from. Raises CheckpointError with a sentence for the user, BundleError for damage.
    """
    bundle.verify()
    spec = bundle.spec
    if spec.weights_file == GRAPH_FILE:
        raise CheckpointError(
            f"{spec.id}: architecture {spec.architecture} is a graph, which no family's layout holds: copy its {GRAPH_FILE}"
        )
    weights = load_file(bundle.weights_path)
    target = _choose(spec, weights, family)
    copies = {name: file.with_name(f"{file.stem}.{name}") for name in spec.files}
    for written in (file, *copies.values()):
        if written.exists():
            raise CheckpointError(f"{written}: exists already")
    if not file.parent.is_dir():
        raise CheckpointError(f"{file.parent}: there is no such folder")
    config = read_config(architectures()[spec.architecture].config, spec.config)
    published = _export_weights(spec, target, weights)
    description = _description(bundle, target, config)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=file.parent) as folder:
        written = Path(folder) / file.name
        write(written, target, published, description)
        written.rename(file)
    for name, copy in copies.items():
        shutil.copyfile(bundle.path / name, copy)
    settings = _unstated_config(target, published, description, config) | _unstated_inputs(spec, target, file, description, config)
    return ExportedCheckpoint(target.name, len(published), settings, target.dropped_note, copies)


def write(file: Path, family: Family, published: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write published weights and their description in the container of the suffix."""
    if file.suffix == ".safetensors":
        metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
        save_file({key: value.clone() for key, value in published.items()}, file, metadata=metadata or None)
    elif family.folder is not None and not file.suffix:
        family.folder(file, published)
    else:
        torch.save(published if family.wrapper is None else {**description, family.wrapper: published}, file)


def _choose(spec: BundleSpec, weights: Mapping[str, Tensor], family: str | None) -> Family:
    name = family or spec.provenance.get("family")
    hub = family is None and name is not None and name not in families()
    if name is None or hub:
        fitting = [
            candidate.name
            for candidate in families().values()
            if candidate.architecture == spec.architecture and _fits(spec, candidate, weights)
        ]
        problem = f"was imported from {name}, whose layout is not written" if hub else "was not imported"
        raise CheckpointError(f"{spec.id}: {problem}; say with --family whose layout to write: {', '.join(fitting) or 'none fits'}")
    if name not in families():
        raise CheckpointError(f"family {name!r} is unknown; known are {', '.join(families())}")
    candidate = families()[name]
    if candidate.architecture != spec.architecture:
        raise CheckpointError(f"{spec.id}: its architecture is {spec.architecture}, but {name} is a family of {candidate.architecture}")
    return candidate


def _fits(spec: BundleSpec, family: Family, weights: Mapping[str, Tensor]) -> bool:
    try:
        _export_weights(spec, family, weights)
    except CheckpointError:
        return False
    return True


def _export_weights(spec: BundleSpec, family: Family, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the family's names. Raises CheckpointError if an import would miss some, or find others."""
    try:
        published = {key: value.contiguous() for key, value in family.export(weights).items()}
        reimported = fit(published, family, spec.config)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{spec.id}: does not fit {family.name}: {error.args[0]}") from error
    if not reimported.perfect:
        raise CheckpointError(f"{spec.id}: does not fit {family.name}: {reimported.mismatch_message()}")
    return published


def _description(bundle: Bundle, family: Family, config: Any) -> dict[str, Any]:
    """Return the description of the weights: by the family for a config, or the text of the import if it is still true. Raises
    CheckpointError for a config that the family's files cannot express."""
    try:
        description = family.describe(config)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    text = bundle.spec.provenance.get("cfg")
    if description or not isinstance(text, str):
        return description
    try:
        declared = family.described({"cfg": text})
        is_current = config == read_config(type(config), {**bundle.spec.config, **declared})
    except ValueError:
        return {}
    return {"cfg": text} if is_current else {}


def _unstated_config(family: Family, published: Mapping[str, Tensor], description: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return the fields of the config that an import infers otherwise, or not at all; without inference those other than their default."""
    fields_of_config = dataclasses.asdict(config)
    try:
        fields = fit(published, family, family.described(description)).fields
        unknown = [name for name in family.head_fields if name not in fields]
        inferred_config = read_config(type(config), {**fields, **{name: fields_of_config[name] for name in unknown}})
    except ValueError:
        unknown, inferred_config = [], type(config)()
    inferred = dataclasses.asdict(inferred_config)
    return {name: value for name, value in fields_of_config.items() if name in unknown or value != inferred[name]}


def _unstated_inputs(spec: BundleSpec, family: Family, file: Path, description: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return the settings of images, clips and sounds that an import of `file` would choose otherwise."""
    purpose = architectures()[spec.architecture].bundle_defaults
    transform = timm_transform.find_transform(file, description, len(spec.labels))
    try:
        defaults = bundle_fields.input_fields(family, purpose, config, {}, transform)
    except (CheckpointError, ValueError):  # files next to it cannot be used without settings
        defaults = {}
    return bundle_fields.unstated_settings(spec, defaults)
