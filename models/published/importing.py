"""A published checkpoint becomes a bundle: find its family, infer its config, check that everything fits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.bundle import LABELLED, BundleSpec, Clip, Preprocess, Rung, Sound, Weights
from models.diffmae import published as diffmae
from models.hmr2 import published as hmr2
from models.lart import published as lart
from models.layers.positions import resize_table
from models.mae import published as mae
from models.mae_st import published as mae_st
from models.mavil import published as mavil
from models.mcc import published as mcc
from models.mvit import published as mvit
from models.mvit import published_reversible as rev
from models.pairs import published_cit as cit
from models.pairs import published_flip as flip
from models.pairs import published_maws as maws
from models.phalp import published as phalp
from models.published import t5x
from models.published.bundling import Purpose, purpose_of
from models.published.container import CheckpointError, read_checkpoint, read_description
from models.published.family import Family, Fields, UnlikeFamily
from models.registry import ARCHITECTURES, read_config
from models.vit import published as timm
from models.vit import published_deit as deit
from models.vit import published_swag as swag
from models.vit.model import ViTConfig

MODULES = (timm, deit, mae, swag, mae_st, mavil, mcc, diffmae, hmr2, lart, mvit, maws, flip)
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        *(module.FAMILY for module in MODULES),
        mae.PRETRAINING,
        mae_st.PRETRAINING,
        mavil.PRETRAINING,
        mavil.AUDIO_MAE,
        mvit.SEPARATE,
        *rev.FAMILIES,
        phalp.POSE,
        phalp.APPEARANCE,
        maws.CLIP,
        *cit.FAMILIES,
    )
}

MERGING = frozenset({"classify", "embed", "actions"})
"""Tasks whose answers need no token of its own for each patch."""

LADDER_SHARES = (0.25, 0.5, 0.65, 0.8, 0.95)
"""Rungs of an imported bundle: the share of the patches that have merged at the end, evenly over the blocks. None is measured."""

PREPROCESS_FIELDS = frozenset(Preprocess.model_fields) - {"image_size", "image_width"}
CLIP_FIELDS = frozenset({"stride", "rate"})
SOUND_FIELDS = {"sample_rate": "sample_rate", "sound_mean": "mean", "sound_std": "std"}
INPUT_FIELDS = PREPROCESS_FIELDS | CLIP_FIELDS | SOUND_FIELDS.keys()
"""What can be set by hand besides the config."""


@dataclass(frozen=True)
class Fit:
    """A checkpoint read as one family."""

    family: Family
    fields: Fields
    """Of the architecture's config: what keys tell, the family's defaults, what was set by hand."""
    weights: dict[str, Tensor]
    """By our names."""
    missing: list[str]
    unexpected: list[str]
    """Published keys."""
    misshapen: list[str]

    @property
    def perfect(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def config(self) -> Any:
        """The architecture's config; `heads` must be among the fields."""
        return read_config(ARCHITECTURES[self.family.architecture].config, self.fields)

    def model(self) -> nn.Module:
        """The model with its weights, in evaluation mode."""
        model = ARCHITECTURES[self.family.architecture].build(self.config())
        model.load_state_dict(self.weights)
        return model.eval()

    def complaint(self) -> str:
        text = _complaint(self.missing, self.unexpected, self.misshapen)
        decodes = self.family.architecture == "vit" and "decoder_pred.weight" in self.unexpected
        if decodes or any(key.startswith(("head.", "head_")) for key in self.missing):
            features = "; --set classes=0 takes an encoder for its features" if self.family.architecture == "vit" and not decodes else ""
            text += f" (without a head they are pre-training weights, which cannot classify before they are fine-tuned{features})"
        return text


def detect(
    weights: Mapping[str, Tensor],
    description: Mapping[str, Any] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """The families whose keys these are, by name: none, one, or several whose files look alike.

    description: what the file says of itself, from `read_description`; settings: fields set by hand, which count where a family has them.
    """
    fits = []
    for family in FAMILIES.values():
        try:
            fits.append(fit(weights, family, {**family.described(description), **_known_to(family, settings)}))
        except ValueError:
            continue
    return [found.family.name for found in fits if found.perfect]


def fit(weights: Mapping[str, Tensor], family: Family, settings: Fields) -> Fit:
    """Read published weights as a family. settings: config fields that override what was inferred.

    Raises UnlikeFamily if the weights lack what the config is inferred from, ValueError for settings that cannot be.
    """
    for name in family.head_fields:
        heads = settings.get(name, 1)
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
            raise ValueError(f"{name}: {heads!r} is no number of heads")
    weights = family.tidy(weights)
    translated = family.table.translate(weights)
    fields = {**family.config(translated.weights, settings), **family.defaults, **settings}
    architecture = ARCHITECTURES[family.architecture]
    config = read_config(architecture.config, {**dict.fromkeys(family.head_fields, 1), **fields})
    with torch.device("meta"):
        model = architecture.build(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    ours = family.resized(_resize_positions(translated.weights, config, family), config)
    complete = family.table.translate(weights, needed=expected)
    misshapen = [
        f"{key} {tuple(ours[name].shape)} for {shape}"
        for name, shape in expected.items()
        if name in ours and tuple(ours[name].shape) != shape
        for key in family.table.published_names(name)
    ]
    misshapen += [f"{key} {tuple(weights[key].shape)}" for key in complete.unjoinable]
    strangers = [key for name in ours if name not in expected for key in family.table.published_names(name)]
    kept = {name: ours[name].contiguous() for name in expected if name in ours}
    return Fit(family, fields, kept, complete.missing, complete.unexpected + strangers, misshapen)


def import_checkpoint(
    file: Path,
    *,
    family: str | None,
    labels: Sequence[str] | None,
    overrides: Mapping[str, str],
    name: str,
    version: str,
    license: str,
) -> tuple[BundleSpec, dict[str, Tensor]]:
    """Read a published checkpoint: the spec of a bundle, its weights still to be sealed by `bundle.write`, and the weights by our names.

    family: None to find it from the keys. labels: None for those that the architecture has, else "class 0", "class 1", …. overrides: config
    and preprocessing fields as written on a command line, as `heads` = "4", `mean` = "0.5,0.5,0.5", `stride` = "2"; another `image_size`
    resizes the position table as the family does.
    Raises CheckpointError with a sentence for the user.
    """
    published, description = read_checkpoint(file), read_description(file)
    chosen = _choose(file, published, family, description, {key: _parse(value) for key, value in overrides.items()})
    config_settings, input_settings = _settings(chosen, overrides)
    try:
        found = fit(published, chosen, {**chosen.described(description), **config_settings})
    except UnlikeFamily as error:
        tidied = chosen.tidy(published)
        missing, unexpected = chosen.table.unmatched(tidied), chosen.table.translate(tidied).unexpected
        raise CheckpointError(
            f"{file}: does not fit {chosen.name}: {_complaint(missing, unexpected, []) if unexpected else error}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if not found.perfect:
        raise CheckpointError(f"{file}: does not fit {chosen.name}: {found.complaint()}")
    unknown = [name for name in chosen.head_fields if name not in found.fields]
    if unknown:
        what = unknown[0].replace("_", " ")
        hint = f"set it, as in --set {unknown[0]}=4"
        told = f"width {found.fields['width']} does" if "width" in found.fields else "its shapes do"
        raise CheckpointError(f"{file}: {told} not tell the number of {what}: {hint}")
    config, purpose = found.config(), purpose_of(chosen.architecture)
    task = purpose.task(config)
    # SlowFast's files say more than keys and config: an export writes it back
    said = {"cfg": description["cfg"]} if "cfg" in description else {}
    left_out = _left_out(published, chosen)
    try:
        spec = BundleSpec(
            name=name,
            version=version,
            task=task,
            architecture=chosen.architecture,
            config=dataclasses.asdict(config),
            preprocess=_preprocess(chosen, purpose, config, input_settings),
            clip=_clip(purpose, config, input_settings),
            sound=_sound(purpose, config, input_settings),
            labels=_labels(file, labels, purpose.names(config), purpose.classes(config) if task in LABELLED else 0),
            license=license,
            provenance={"file": file.name, "sha256": _sha256(file), "family": chosen.name, "set": dict(overrides), **said, **left_out},
            ladder=_ladder(config) if task in MERGING else [],
            weights=Weights(sha256="0" * 64, bytes=0),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{'.'.join(map(str, first['loc'])) or 'bundle'}: {first['msg']}") from error
    return spec, found.weights


def _complaint(missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]) -> str:
    """What does not fit, in one line."""
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return "; ".join(f"{what}: {', '.join(_once(keys))}" for what, keys in parts.items() if keys)


def _once(keys: Sequence[str]) -> list[str]:
    """Keys that differ by the number of their block are named once."""
    return list(dict.fromkeys(re.sub(r"(?<=[._])\d+(?=\.)", "{i}", key, count=1) for key in keys))


def _left_out(published: Mapping[str, Tensor], family: Family) -> dict[str, list[str]]:
    """What a file holds beside the model; nothing where the family reads keys under other names."""
    tidied = family.tidy(published)
    dropped = [key for key in published if key not in tidied]
    return {"left_out": _once(dropped)} if dropped and len(dropped) + len(tidied) == len(published) else {}


def _choose(file: Path, published: Mapping[str, Tensor], name: str | None, description: Mapping[str, Any], settings: Fields) -> Family:
    if name is not None:
        if name not in FAMILIES:
            raise CheckpointError(f"family {name!r} is unknown; known are {', '.join(FAMILIES)}")
        return FAMILIES[name]
    names = detect(published, description) or detect(published, description, settings)
    if len(names) == 1:
        return FAMILIES[names[0]]
    if names:
        raise CheckpointError(f"{file}: its keys fit the families {', '.join(names)}; say which it is with --family")
    stated = _stated(description)
    if len(stated) == 1:
        return FAMILIES[stated[0]]  # what is wrong with it is said when it is read
    raise CheckpointError(f"{file}: fits no known family ({', '.join(FAMILIES)}). {_nearest(published, description, settings)}")


def _stated(description: Mapping[str, Any]) -> list[str]:
    """The families whose files say of themselves what this one does, whether or not it is right."""
    names = []
    for family in FAMILIES.values():
        try:
            told = bool(family.described(description))
        except ValueError:
            told = True
        if told:
            names.append(family.name)
    return names


def _nearest(published: Mapping[str, Tensor], description: Mapping[str, Any], settings: Fields) -> str:
    fits: list[Fit] = []
    refusals: list[tuple[int, str]] = []  # rows of the table that the file has not, why it cannot be read
    for family in FAMILIES.values():
        try:
            fits.append(fit(published, family, {**family.described(description), **_known_to(family, settings)}))
        except ValueError as error:
            tidied = family.tidy(published)
            if tidied and not family.table.translate(tidied).unexpected:
                refusals.append((len(family.table.unmatched(tidied)), f"Its keys are those of {family.name}, but {error}"))
    absent, refusal = min(refusals, default=(0, f"Its keys are {', '.join(list(published)[:5])}, …"))
    if not fits or (refusals and not absent):
        return refusal
    nearest = min(fits, key=lambda found: len(found.missing) + len(found.unexpected) + len(found.misshapen))
    return f"Nearest is {nearest.family.name}: {nearest.complaint()}"


def _known_to(family: Family, settings: Mapping[str, Any]) -> Fields:
    """Those that are fields of the family's config."""
    known = {field.name for field in dataclasses.fields(ARCHITECTURES[family.architecture].config)}
    return {key: value for key, value in settings.items() if key in known}


def _settings(family: Family, overrides: Mapping[str, str]) -> tuple[Fields, Fields]:
    """→ for the config, for what the model sees and hears."""
    config_fields = {field.name for field in dataclasses.fields(ARCHITECTURES[family.architecture].config)}
    unknown = sorted(set(overrides) - config_fields - INPUT_FIELDS)
    if unknown:
        known = ", ".join(sorted(config_fields | INPUT_FIELDS))
        raise CheckpointError(f"{', '.join(unknown)}: cannot be set; what can be is {known}")
    values = {key: _parse(value) for key, value in overrides.items()}
    return (
        {key: value for key, value in values.items() if key in config_fields},
        {key: value for key, value in values.items() if key not in config_fields},
    )


def _parse(value: str) -> Any:
    """JSON, `1,2,3` for a list, else text."""
    for text in (value, f"[{value}]"):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            continue
    return value


def _resize_positions(weights: Mapping[str, Tensor], config: Any, family: Family) -> dict[str, Tensor]:
    """Position tables of pictures are taken to the image size that was asked for."""
    if not isinstance(config, ViTConfig):
        return dict(weights)
    table = resize_table(weights["pos_embed"], config.patches, special=config.special_tokens, align_corners=family.align_corners)
    return {**weights, "pos_embed": table}


def _preprocess(family: Family, purpose: Purpose, config: Any, settings: Fields) -> Preprocess | None:
    size = purpose.size(config)
    if size is None:
        return None
    height, width = size
    usual = family.preprocess(min(size)).model_dump() | {"image_size": height, "image_width": None if width == height else width}
    return Preprocess.model_validate(usual | {key: value for key, value in settings.items() if key in PREPROCESS_FIELDS})


def _clip(purpose: Purpose, config: Any, settings: Fields) -> Clip | None:
    clip = purpose.clip(config)
    chosen = {key: value for key, value in settings.items() if key in CLIP_FIELDS}
    return None if clip is None else Clip.model_validate(clip.model_dump() | chosen)


def _sound(purpose: Purpose, config: Any, settings: Fields) -> Sound | None:
    sound = purpose.sound(config)
    chosen = {SOUND_FIELDS[key]: value for key, value in settings.items() if key in SOUND_FIELDS}
    return None if sound is None else Sound.model_validate(sound.model_dump() | chosen)


def _labels(file: Path, labels: Sequence[str] | None, known: Sequence[str], classes: int) -> list[str]:
    if labels is None:
        return list(known) or [f"class {index}" for index in range(classes)]
    if len(labels) != classes:
        raise CheckpointError(f"{file}: has {classes or 'no'} classes, but {len(labels)} labels were given")
    return list(labels)


def _ladder(config: Any) -> list[Rung]:
    """Empty for a model whose tokens do not merge."""
    patches = getattr(config, "patches", 0)
    values = sorted({int(share * patches / config.depth) for share in LADDER_SHARES} - {0})
    return [Rung(name=f"r{r}", schedule=r) for r in values]


def _sha256(file: Path) -> str:
    """Of a T5X folder: of its index."""
    file = t5x.index_of(file) if file.is_dir() else file
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
