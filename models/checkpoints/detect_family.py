"""Detection of the family that a checkpoint belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from models.checkpoints.checkpoint_file import CheckpointError, InvalidSetting
from models.checkpoints.family import ConfigFields, Family, families
from models.checkpoints.fit_family import ONNX_ADVICE, CheckpointFit, fit
from models.registry import architectures, hub_classes, resolve, systems


def detect(
    weights: Mapping[str, Tensor],
    description: Mapping[str, Any] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Return the names of the families whose keys these are: none, one, or several with the same keys. An encoder without a head counts.

    description: `Checkpoint.description` of the file; settings: fields set by hand, used for families that have them.
    """
    fits = []
    for family in families().values():
        try:
            fits.append(fit(weights, family, {**family.described(description), **_settings_for(family, settings)}))
        except ValueError:
            continue
    return [candidate.family.name for candidate in fits if candidate.perfect or candidate.headless]


def choose_family(
    file: Path, published: Mapping[str, Tensor], name: str | None, description: Mapping[str, Any], settings: ConfigFields
) -> Family:
    if name is not None:
        if name not in families():
            raise InvalidSetting(f"family {name!r} is unknown; known are {', '.join(families())}")
        return families()[name]
    names = detect(published, description) or detect(published, description, settings)
    if len(names) == 1:
        return families()[names[0]]
    if names:
        headed = any(key.startswith("head") for key in published)
        headless = "" if headed else " (it has no head: --set classes=0 takes an encoder for its features)"
        raise CheckpointError(
            f"{file}: its keys fit the families {', '.join(names)}; say which it is with --family; how each "
            f"prepares images is in docs/checkpoints.md{headless}"
        )
    described = _self_described_families(description)
    if len(described) == 1:
        return families()[described[0]]  # reading it will say what is wrong
    raise CheckpointError(f"{file}: {_nearest_family(published, description, settings)}")


def choose_class(file: Path, config: Mapping[str, Any]) -> Family:
    """Return the family of a class of transformers, from its `config.json`. Raises CheckpointError."""
    classes, name = hub_classes(), config["architectures"][0]
    if name not in classes:
        raise CheckpointError(
            f"{file}: config.json: architectures {name!r} is not read here; accepted are {', '.join(classes)}; {ONNX_ADVICE}"
        )
    family: Family = resolve(classes[name])
    return family


def choose_network(file: Path, config: Mapping[str, Any]) -> Family:
    """Return the family of a network of timm, from its `config.json`. Raises CheckpointError."""
    name = config["architecture"]
    for system in systems():
        family: Family | None = resolve(system.timm_networks)(config) if system.timm_networks is not None else None
        if family is not None:
            return family
    raise CheckpointError(
        f"{file}: config.json: architecture {name!r} is not read by its name; accepted are vit_SIZE_patchN_PIXELS, deit_…, "
        f"vit_…_dinov2 and vit_…_clip_…; --family takes another one as what its keys are; {ONNX_ADVICE}"
    )


def _self_described_families(description: Mapping[str, Any]) -> list[str]:
    """Return the families whose files describe themselves as this one does, valid or not."""
    names = []
    for family in families().values():
        try:
            is_described = bool(family.described(description))
        except ValueError:
            is_described = True
        if is_described:
            names.append(family.name)
    return names


def _nearest_family(published: Mapping[str, Tensor], description: Mapping[str, Any], settings: ConfigFields) -> str:
    fits: list[CheckpointFit] = []
    refusals: list[tuple[int, str]] = []  # rows of the table that the file lacks, and the error
    for family in families().values():
        try:
            fits.append(fit(published, family, {**family.described(description), **_settings_for(family, settings)}))
        except ValueError as error:
            tidied = family.clean(published)
            if tidied and not family.table.translate(tidied).unexpected:
                refusals.append((len(family.table.unmatched_rows(tidied)), f"its keys are those of {family.name}, but {error}"))
    unknown = f"fits no known family ({', '.join(families())})."
    absent, refusal = min(refusals, default=(0, f"{unknown} Its keys are {', '.join(list(published)[:5])}, …; {ONNX_ADVICE}"))
    if not fits or (refusals and not absent):
        return refusal
    nearest = min(fits, key=lambda candidate: len(candidate.missing) + len(candidate.unexpected) + len(candidate.misshapen))
    return f"{unknown} Nearest is {nearest.family.name}: {nearest.mismatch_message()}; {ONNX_ADVICE}"


def _settings_for(family: Family, settings: Mapping[str, Any]) -> ConfigFields:
    """Return the settings that are fields of the family's config."""
    fields = {field.name for field in dataclasses.fields(architectures()[family.architecture].config)}
    return {key: value for key, value in settings.items() if key in fields}
