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
from models.checkpoints.fit_family import CheckpointFit, fit
from models.checkpoints.unsupported import ONNX_ADVICE
from models.registry import architectures, hub_classes, resolve, systems


def detect(
    weights: Mapping[str, Tensor],
    description: Mapping[str, Any] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """The families whose keys these are, by name: none, one, or several whose files look alike. An encoder without a head counts.

    description: what the file says of itself, `Checkpoint.description`; settings: fields set by hand, which count where a family has them.
    """
    fits = []
    for family in families().values():
        try:
            fits.append(fit(weights, family, {**family.described(description), **_settings_for(family, settings)}))
        except ValueError:
            continue
    return [found.family.name for found in fits if found.perfect or found.headless]


def choose(file: Path, published: Mapping[str, Tensor], name: str | None, description: Mapping[str, Any], settings: ConfigFields) -> Family:
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
    stated = _self_described_families(description)
    if len(stated) == 1:
        return families()[stated[0]]  # what is wrong with it is said when it is read
    raise CheckpointError(f"{file}: {_nearest_family(published, description, settings)}")


def choose_class(file: Path, config: Mapping[str, Any]) -> Family:
    """The family of a class of transformers, from its `config.json`. Raises CheckpointError."""
    known, name = hub_classes(), config["architectures"][0]
    if name not in known:
        raise CheckpointError(
            f"{file}: config.json: architectures {name!r} is not read here; accepted are {', '.join(known)}; {ONNX_ADVICE}"
        )
    family: Family = resolve(known[name])
    return family


def choose_network(file: Path, config: Mapping[str, Any]) -> Family:
    """The family of a network of timm, from its `config.json`. Raises CheckpointError."""
    name = config["architecture"]
    for system in systems():
        found: Family | None = resolve(system.timm_networks)(config) if system.timm_networks is not None else None
        if found is not None:
            return found
    raise CheckpointError(
        f"{file}: config.json: architecture {name!r} is not read by its name; accepted are vit_SIZE_patchN_PIXELS, deit_…, "
        f"vit_…_dinov2 and vit_…_clip_…; --family takes another one as what its keys are; {ONNX_ADVICE}"
    )


def _self_described_families(description: Mapping[str, Any]) -> list[str]:
    """The families whose files say of themselves what this one does, whether or not it is right."""
    names = []
    for family in families().values():
        try:
            told = bool(family.described(description))
        except ValueError:
            told = True
        if told:
            names.append(family.name)
    return names


def _nearest_family(published: Mapping[str, Tensor], description: Mapping[str, Any], settings: ConfigFields) -> str:
    fits: list[CheckpointFit] = []
    refusals: list[tuple[int, str]] = []  # rows of the table that the file has not, why it cannot be read
    for family in families().values():
        try:
            fits.append(fit(published, family, {**family.described(description), **_settings_for(family, settings)}))
        except ValueError as error:
            tidied = family.tidy(published)
            if tidied and not family.table.translate(tidied).unexpected:
                refusals.append((len(family.table.unmatched(tidied)), f"its keys are those of {family.name}, but {error}"))
    unknown = f"fits no known family ({', '.join(families())})."
    absent, refusal = min(refusals, default=(0, f"{unknown} Its keys are {', '.join(list(published)[:5])}, …; {ONNX_ADVICE}"))
    if not fits or (refusals and not absent):
        return refusal
    nearest = min(fits, key=lambda found: len(found.missing) + len(found.unexpected) + len(found.misshapen))
    return f"{unknown} Nearest is {nearest.family.name}: {nearest.complaint()}; {ONNX_ADVICE}"


def _settings_for(family: Family, settings: Mapping[str, Any]) -> ConfigFields:
    """The settings that are fields of the family's config."""
    known = {field.name for field in dataclasses.fields(architectures()[family.architecture].config)}
    return {key: value for key, value in settings.items() if key in known}
