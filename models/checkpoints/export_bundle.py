"""A bundle becomes a checkpoint of a published family again: its key names, its layouts, its container."""

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
    """Fields of the config and of the inputs that an import cannot infer from the file, and needs to be told."""
    lacks: str
    """Names what the published files hold besides; empty for nothing."""
    beside: dict[str, Path]
    """Copies of the bundle's further files, by their names there: maws.tokenizer.json beside maws.pt."""


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
    chosen = _choose(spec, weights, family)
    beside = {name: file.with_name(f"{file.stem}.{name}") for name in spec.files}
    for written in (file, *beside.values()):
        if written.exists():
            raise CheckpointError(f"{written}: exists already")
    if not file.parent.is_dir():
        raise CheckpointError(f"{file.parent}: there is no such folder")
    config = read_config(architectures()[spec.architecture].config, spec.config)
    published = _export_weights(spec, chosen, weights)
    description = _description(bundle, chosen, config)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=file.parent) as folder:
        written = Path(folder) / file.name
        write(written, chosen, published, description)
        written.rename(file)
    for name, copy in beside.items():
        shutil.copyfile(bundle.path / name, copy)
    settings = _unstated_config(chosen, published, description, config) | _unstated_inputs(spec, chosen, file, description, config)
    return ExportedCheckpoint(chosen.name, len(published), settings, chosen.left_behind, beside)


def write(file: Path, family: Family, published: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Published weights, and what the file says of itself, in the container that the suffix asks for."""
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
        fitting = [known.name for known in families().values() if known.architecture == spec.architecture and _fits(spec, known, weights)]
        what = f"was imported from {name}, whose layout is not written" if hub else "was not imported"
        raise CheckpointError(f"{spec.id}: {what}; say with --family whose layout to write: {', '.join(fitting) or 'none fits'}")
    if name not in families():
        raise CheckpointError(f"family {name!r} is unknown; known are {', '.join(families())}")
    chosen = families()[name]
    if chosen.architecture != spec.architecture:
        raise CheckpointError(f"{spec.id}: its architecture is {spec.architecture}, but {name} is a family of {chosen.architecture}")
    return chosen


def _fits(spec: BundleSpec, family: Family, weights: Mapping[str, Tensor]) -> bool:
    try:
        _export_weights(spec, family, weights)
    except CheckpointError:
        return False
    return True


def _export_weights(spec: BundleSpec, family: Family, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the family's names, read as an import would. Raises CheckpointError where the family's files have more, or less."""
    try:
        published = {key: value.contiguous() for key, value in family.export(weights).items()}
        found = fit(published, family, spec.config)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{spec.id}: does not fit {family.name}: {error.args[0]}") from error
    if not found.perfect:
        raise CheckpointError(f"{spec.id}: does not fit {family.name}: {found.complaint()}")
    return published


def _description(bundle: Bundle, family: Family, config: Any) -> dict[str, Any]:
    """The description beside the weights: what the family states about a config, or the text that the bundle was imported with if it is
    still true. Raises CheckpointError for a config that the family's files cannot express."""
    try:
        stated = family.describe(config)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    text = bundle.spec.provenance.get("cfg")
    if stated or not isinstance(text, str):
        return stated
    try:
        told = family.described({"cfg": text})
        true = config == read_config(type(config), {**bundle.spec.config, **told})
    except ValueError:
        return {}
    return {"cfg": text} if true else {}


def _unstated_config(family: Family, published: Mapping[str, Tensor], description: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Fields of the config that an import finds otherwise, or not at all. Where it finds nothing: those that have not their default."""
    whole = dataclasses.asdict(config)
    try:
        fields = fit(published, family, family.described(description)).fields
        unknown = [name for name in family.head_fields if name not in fields]
        found = read_config(type(config), {**fields, **{name: whole[name] for name in unknown}})
    except ValueError:
        unknown, found = [], type(config)()
    inferred = dataclasses.asdict(found)
    return {name: value for name, value in whole.items() if name in unknown or value != inferred[name]}


def _unstated_inputs(spec: BundleSpec, family: Family, file: Path, description: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Settings of images, clips and sounds that an import of `file` would choose otherwise."""
    purpose = architectures()[spec.architecture].bundle_defaults
    stated = timm_transform.find_transform(file, description, len(spec.labels))
    try:
        usual = bundle_fields.input_fields(family, purpose, config, {}, stated)
    except (CheckpointError, ValueError):  # what lies beside the file cannot be used without settings
        usual = {}
    return bundle_fields.unstated_settings(spec, usual)
