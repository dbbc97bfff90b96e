"""A published checkpoint becomes a bundle: find its family, infer its config, check that everything fits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from models.bundle import BundleSpec
from models.bundle_schema import LABELLED_TASKS, FileDigest, Preprocess
from models.checkpoints import bundle_fields, hf_config, hf_folder, hf_image_processor, t5x, timm_transform
from models.checkpoints import import_settings as settings
from models.checkpoints.checkpoint_file import Checkpoint, CheckpointError, InvalidSetting, open_checkpoint
from models.checkpoints.detect_family import choose, choose_class, choose_network
from models.checkpoints.family import ConfigFields, Family, UnlikeFamily
from models.checkpoints.fit_family import CheckpointFit, collapse_block_numbers, describe_mismatch, fit
from models.checkpoints.timm_transform import StatedTransform
from models.checkpoints.unsupported import ONNX_ADVICE
from models.registry import architectures


def import_checkpoint(
    file: Path,
    *,
    family: str | None,
    labels: Sequence[str] | None,
    overrides: Mapping[str, str],
    name: str,
    version: str,
    license: str | None,
    origin: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[BundleSpec, dict[str, Tensor]]:
    """Read a published checkpoint: the spec of a bundle, its weights still to be sealed by `bundle.write`, and the weights by our names.

    file: also a folder, as the hub has them (`models.checkpoints.hf_folder`) or as T5X writes it. family: None to find it from the keys,
    or from a folder's `config.json`. labels: None for those that such a folder states, or the architecture has, else "class 0", "class 1",
    …. license: None for the one that a model card beside the weights states. overrides: config and preprocessing fields as written on a
    command line, as `heads` = "4", `mean` = "0.5,0.5,0.5", `stride` = "2"; another `image_size` resizes the position table as the family
    does. origin: further fields of the provenance, which say where the files came from.
    Raises CheckpointError with a sentence for the user, WrongSetting where what was set by hand is wrong.
    """
    checkpoint = hf_folder.open_folder(file) if hf_folder.is_folder(file) else open_checkpoint(file)
    given = settings.parse(overrides)
    try:
        chosen = _family(file, checkpoint, family, given)
    except CheckpointError:
        settings.check(given)
        raise
    config_settings, input_settings = settings.split(chosen, given)
    found = _fit(file, checkpoint, chosen, config_settings)
    config, architecture = found.config(), architectures()[chosen.architecture]
    purpose = architecture.bundle_defaults
    task = purpose.task(config)
    classes = purpose.classes(config) if purpose.classes and task in LABELLED_TASKS else 0
    stated = timm_transform.find_transform(file, checkpoint.description, classes)
    try:
        names = bundle_fields.label_names(file, labels, checkpoint.labels if classes else (), purpose.names(config), classes)
        inputs = bundle_fields.input_fields(chosen, purpose, config, input_settings, stated)
        spec = BundleSpec(
            name=name,
            version=version,
            task=task,
            architecture=chosen.architecture,
            config=dataclasses.asdict(config),
            **inputs,
            labels=names,
            license=license or checkpoint.license or "unknown",
            provenance=_provenance(file, checkpoint, chosen, overrides, config, names)
            | _transform_provenance(chosen, stated, inputs["preprocess"], given, checkpoint)
            | dict(origin),
            ladder=bundle_fields.unmeasured_ladder(architecture, task, config, sees=inputs["preprocess"] is not None),
            weights=FileDigest(sha256="0" * 64, bytes=0),
        )
    except ValidationError as error:
        first = error.errors()[0]
        wrong = InvalidSetting if input_settings or first["loc"] in (("name",), ("version",)) else CheckpointError
        raise wrong(f"{'.'.join(map(str, first['loc'])) or 'bundle'}: {first['msg']}") from error
    return spec, found.weights


def _family(file: Path, checkpoint: Checkpoint, name: str | None, given: ConfigFields) -> Family:
    config, network = (checkpoint.description.get(key) for key in (hf_config.KEY, hf_config.TIMM))
    if network is not None and name is None:
        return choose_network(file, network)
    if config is None:
        return choose(file, checkpoint.weights, name, checkpoint.description, given)
    if name is not None:
        raise InvalidSetting(f"family {name!r}: {file / hf_config.FILE} says which network it is; a family is for files without one")
    return choose_class(file, config)


def _fit(file: Path, checkpoint: Checkpoint, family: Family, given: ConfigFields) -> CheckpointFit:
    """Raises CheckpointError unless everything fits and all heads are known."""
    published = checkpoint.weights
    try:
        described = family.described(checkpoint.description)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    try:
        if family.own_size and "image_size" not in given:
            _check_size(file, published, family, described["image_size"])
        found = fit(published, family, {**described, **given})
    except UnlikeFamily as error:
        tidied = family.tidy(published)
        missing, unexpected = family.table.unmatched(tidied), family.table.translate(tidied).unexpected
        what = f"{describe_mismatch(missing, unexpected, [])}; {ONNX_ADVICE}" if unexpected else error
        raise CheckpointError(f"{file}: does not fit {family.name}: {what}") from error
    except ValueError as error:
        raise (InvalidSetting if given else CheckpointError)(f"{file}: {error}") from error
    if not found.perfect:
        raise CheckpointError(f"{file}: does not fit {family.name}: {found.complaint()}; {ONNX_ADVICE}")
    for name, value in found.weights.items():
        if not value.isfinite().all():
            key = ", ".join(family.table.published_names(name))
            raise CheckpointError(f"{file}: {key} holds values that are infinite or not a number; no network answers with them")
    unknown = [name for name in family.head_fields if name not in found.fields]
    if unknown:
        widths = [name.replace("heads", "width") for name in unknown]
        known = [f"{width.replace('_', ' ')} {found.fields[width]}" for width in widths if width in found.fields]
        told = " and ".join(known) + (" do" if known[1:] else " does") if len(known) == len(unknown) else "its shapes do"
        what = " and of ".join(name.replace("_", " ") for name in unknown)
        settings = " ".join(f"--set {name}=4" for name in unknown)
        raise CheckpointError(f"{file}: {told} not tell the number of {what}: set {'them' if unknown[1:] else 'it'}, as in {settings}")
    return found


def _check_size(file: Path, published: Mapping[str, Tensor], family: Family, stated: int) -> None:
    """Raises CheckpointError where the position table is of another image size than the one stated, UnlikeFamily where there is none."""
    own = family.config(family.table.translate(family.tidy(published)).weights, {})["image_size"]
    if own != stated:
        raise CheckpointError(
            f"{file}: image_size {stated} is not that of its position table, {own}; --set image_size={own} takes that of the table"
        )


def _provenance(
    file: Path, checkpoint: Checkpoint, family: Family, overrides: Mapping[str, str], config: Any, labels: Sequence[str]
) -> dict[str, Any]:
    # SlowFast's files say more than keys and config: an export writes it back
    said = {"cfg": checkpoint.description["cfg"]} if "cfg" in checkpoint.description else {}
    absent = [name for name in family.beside if getattr(config, name) is None]
    assumed = [name for name in family.assumed if name not in overrides]
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    found = [
        *checkpoint.notes,
        *(
            f"{name} {getattr(config, name)} is assumed, as published, since no weight tells it: --set {name}=… changes it"
            for name in assumed
        ),
        *([f"{', '.join(map(repr, repeated))}: the label of several classes, whose answers nobody can tell apart"] if repeated else []),
        *(f"{name} is in no file that was read: --set {name}={name}.npy puts it into the bundle" for name in absent),
    ]
    notes = {"notes": found} if found else {}
    left_out = _dropped_keys(checkpoint.weights, family)
    return {"file": file.name, "sha256": _sha256(file), "family": family.name, "set": dict(overrides), **said, **notes, **left_out}


def _transform_provenance(
    family: Family, stated: StatedTransform, preprocess: Preprocess | None, given: ConfigFields, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Where the preparation of images comes from, for the provenance."""
    if preprocess is None:
        return {}
    if stated.source:
        return {"transform": f"read from {stated.source}"}
    file = "" if stated.note else hf_image_processor.FILE if hf_config.KEY in checkpoint.description else hf_config.FILE
    assumed = timm_transform.describe_assumption(f"that of family {family.name}", preprocess.model_dump(), given, file)
    found = "; ".join(filter(None, (stated.note, assumed)))
    return {"transform": found or "set by hand"}


def _dropped_keys(published: Mapping[str, Tensor], family: Family) -> dict[str, list[str]]:
    """Names what a file holds besides the model; nothing if the family reads keys under other names."""
    tidied = family.tidy(published)
    dropped = [key for key in published if key not in tidied]
    return {"left_out": collapse_block_numbers(dropped)} if dropped and len(dropped) + len(tidied) == len(published) else {}


def _sha256(file: Path) -> str:
    """SHA-256 of the file, or of a folder's file of weights, or of the index that names them."""
    if file.is_dir():
        file = hf_folder.weights_file(file) if hf_folder.is_folder(file) else t5x.index_file(file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
