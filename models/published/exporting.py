"""A bundle becomes a checkpoint of a published family again: its key names, its layouts, its container."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.bundle import Bundle
from models.diffmae import published as diffmae
from models.published import t5x
from models.published.container import CheckpointError
from models.published.family import Family
from models.published.importing import FAMILIES, fit
from models.registry import ARCHITECTURES, read_config

FLAT = frozenset({"timm", "swag", "maws", "maws_clip", "cit", "minrev"})
CONTAINERS = {
    **dict.fromkeys(("hmr2", "lart", "phalp_pose"), "state_dict"),
    **dict.fromkeys(("mvit", "mvit_separate", "rev_vit", "rev_vit_fused", "rev_mvit", "rev_mvit_fused"), "model_state"),
    "flip": "target",
}
"""Under which key the published torch files of a family keep the weights, where they are not FLAT; `model` in all others."""


@dataclasses.dataclass(frozen=True)
class Exported:
    family: str
    tensors: int
    settings: dict[str, Any]
    """Config fields that an import cannot infer from the file, and needs to be told."""
    lacks: str
    """What the published files hold besides, in words; empty for nothing."""


def export_bundle(bundle: Bundle, file: Path, family: str | None = None) -> Exported:
    """Write a bundle's weights as a published checkpoint: torch, or safetensors by the suffix; for `flip` without a suffix, T5X's folder.

    family: None for the one that it was imported from. Raises CheckpointError with a sentence for the user, BundleError for damage.
    """
    chosen = _choose(bundle, family)
    if file.exists():
        raise CheckpointError(f"{file}: exists already")
    if not file.parent.is_dir():
        raise CheckpointError(f"{file.parent}: there is no such folder")
    bundle.verify()
    spec, weights = bundle.spec, load_file(bundle.weights_path)
    config = read_config(ARCHITECTURES[spec.architecture].config, spec.config)
    try:
        published = {key: value.contiguous() for key, value in chosen.export(weights).items()}
    except KeyError as error:
        raise CheckpointError(f"{spec.id}: does not fit {chosen.name}: {error.args[0]}") from error
    _require_fit(bundle, chosen, published)
    description: dict[str, Any] = {} if chosen.name == "diffmae" else _description(bundle, chosen)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=file.parent) as folder:
        written = Path(folder) / file.name
        if chosen.name == "diffmae":
            description = _write_diffmae(written, config, weights)
        elif file.suffix == ".safetensors":
            save_file({key: value.clone() for key, value in published.items()}, written, metadata=description or None)
        elif chosen.name == "flip" and not file.suffix:
            t5x.write(written, published)
        elif chosen.name in FLAT:
            torch.save(published, written)
        else:
            torch.save({**description, CONTAINERS.get(chosen.name, "model"): published}, written)
        written.rename(file)
    return Exported(chosen.name, len(published), _untold(chosen, published, description, config), chosen.left_behind)


def _choose(bundle: Bundle, family: str | None) -> Family:
    spec = bundle.spec
    name = family or spec.provenance.get("family")
    if name is None:
        fitting = [known.name for known in FAMILIES.values() if known.architecture == spec.architecture]
        raise CheckpointError(f"{spec.id}: was not imported; say with --family whose layout to write: {', '.join(fitting) or 'none fits'}")
    if name not in FAMILIES:
        raise CheckpointError(f"family {name!r} is unknown; known are {', '.join(FAMILIES)}")
    chosen = FAMILIES[name]
    if chosen.architecture != spec.architecture:
        raise CheckpointError(f"{spec.id}: its architecture is {spec.architecture}, but {name} is a family of {chosen.architecture}")
    return chosen


def _require_fit(bundle: Bundle, family: Family, published: Mapping[str, Tensor]) -> None:
    """Reads the export as an import would. Raises CheckpointError where the family's files have more, or less."""
    try:
        found = fit(published, family, bundle.spec.config)
    except ValueError as error:
        raise CheckpointError(f"{bundle.spec.id}: does not fit {family.name}: {error}") from error
    if not found.perfect:
        raise CheckpointError(f"{bundle.spec.id}: does not fit {family.name}: {found.complaint()}")


def _description(bundle: Bundle, family: Family) -> dict[str, str]:
    """What stands beside the weights: SlowFast's configuration, if the bundle was imported with one and it still tells the truth."""
    text = bundle.spec.provenance.get("cfg")
    if not isinstance(text, str):
        return {}
    config_type = ARCHITECTURES[family.architecture].config
    try:
        told = family.described({"cfg": text})
        true = read_config(config_type, bundle.spec.config) == read_config(config_type, {**bundle.spec.config, **told})
    except ValueError:
        return {}
    return {"cfg": text} if true else {}


def _write_diffmae(file: Path, config: Any, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns what the file says of itself."""
    try:
        diffmae.write(file, config, weights)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return {"format": diffmae.FORMAT, "config": diffmae.describe(config)}


def _untold(family: Family, published: Mapping[str, Tensor], description: Mapping[str, Any], config: Any) -> dict[str, Any]:
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
