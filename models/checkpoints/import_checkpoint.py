"""Import of published checkpoints as bundles: find the family, infer the config, check that everything fits."""

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
from models.checkpoints.checkpoint_file import Checkpoint, CheckpointError, InvalidSetting, open_checkpoint
from models.checkpoints.family import ConfigFields, Family, UnlikeFamily
from models.checkpoints.fit_family import (
    ONNX_ADVICE,
    CheckpointFit,
    choose_class,
    choose_family,
    choose_network,
    collapse_block_numbers,
    describe_mismatch,
    fit,
)
from models.checkpoints.timm_transform import StatedTransform
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
    """Return the spec of a bundle, without the digests of `bundle.write`, and the weights by our names.

    file: also a folder, as on the hub (`models.checkpoints.hf_folder`) or as T5X writes it. family: None to find it from the keys, or from
    a folder's `config.json`. labels: None for those of such a folder, or of the architecture, else "class 0", "class 1", …. license: None
    for that of the model card in the folder. overrides: config and preprocessing fields as on a command line, such as `heads` = "4", `mean`
    = "0.5,0.5,0.5", `stride` = "2"; another `image_size` resizes the position table as the family does. origin: further fields of the
    provenance, about the source of the files.

    Raises CheckpointError with a sentence for the user, InvalidSetting for a wrong setting.
    """
    checkpoint = hf_folder.open_folder(file) if hf_folder.is_folder(file) else open_checkpoint(file)
    set_by_hand = bundle_fields.parse(overrides)
    try:
        source_family = _family(file, checkpoint, family, set_by_hand)
    except CheckpointError:
        bundle_fields.check(set_by_hand)
        raise
    config_settings, input_settings = bundle_fields.split(source_family, set_by_hand)
    fitted = _fit(file, checkpoint, source_family, config_settings)
    config, architecture = fitted.config(), architectures()[source_family.architecture]
    defaults = architecture.bundle_defaults
    task = defaults.task(config)
    classes = defaults.classes(config) if defaults.classes and task in LABELLED_TASKS else 0
    transform = timm_transform.find_transform(file, checkpoint.description, classes)
    try:
        names = bundle_fields.label_names(file, labels, checkpoint.labels if classes else (), defaults.names(config), classes)
        inputs = bundle_fields.input_fields(source_family, defaults, config, input_settings, transform)
        spec = BundleSpec(
            name=name,
            version=version,
            task=task,
            architecture=source_family.architecture,
            config=dataclasses.asdict(config),
            **inputs,
            labels=names,
            license=license or checkpoint.license or "unknown",
            provenance=_provenance(file, checkpoint, source_family, overrides, config, names)
            | _transform_provenance(source_family, transform, inputs["preprocess"], set_by_hand, checkpoint)
            | dict(origin),
            ladder=bundle_fields.unmeasured_ladder(architecture, task, config, sees=inputs["preprocess"] is not None),
            weights=FileDigest(sha256="0" * 64, bytes=0),
        )
    except ValidationError as error:
        first = error.errors()[0]
        wrong = InvalidSetting if input_settings or first["loc"] in (("name",), ("version",)) else CheckpointError
        raise wrong(f"{'.'.join(map(str, first['loc'])) or 'bundle'}: {first['msg']}") from error
    return spec, fitted.weights


def _family(file: Path, checkpoint: Checkpoint, name: str | None, set_by_hand: ConfigFields) -> Family:
    config, network = (checkpoint.description.get(key) for key in (hf_config.KEY, hf_config.TIMM))
    if network is not None and name is None:
        return choose_network(file, network)
    if config is None:
        return choose_family(file, checkpoint.weights, name, checkpoint.description, set_by_hand)
    if name is not None:
        raise InvalidSetting(f"family {name!r}: {file / hf_config.FILE} says which network it is; a family is for files without one")
    return choose_class(file, config)


def _fit(file: Path, checkpoint: Checkpoint, family: Family, set_by_hand: ConfigFields) -> CheckpointFit:
    """Fit a checkpoint to its family. Raises CheckpointError unless everything fits and all numbers of heads are known."""
    published = checkpoint.weights
    try:
        described = family.described(checkpoint.description)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    try:
        if family.own_size and "image_size" not in set_by_hand:
            _check_size(file, published, family, described["image_size"])
        fitted = fit(published, family, {**described, **set_by_hand})
    except UnlikeFamily as error:
        tidied = family.clean(published)
        missing, unexpected = family.table.unmatched_rows(tidied), family.table.translate(tidied).unexpected
        problem = f"{describe_mismatch(missing, unexpected, [])}; {ONNX_ADVICE}" if unexpected else error
        raise CheckpointError(f"{file}: does not fit {family.name}: {problem}") from error
    except ValueError as error:
        raise (InvalidSetting if set_by_hand else CheckpointError)(f"{file}: {error}") from error
    if not fitted.perfect:
        raise CheckpointError(f"{file}: does not fit {family.name}: {fitted.mismatch_message()}; {ONNX_ADVICE}")
    for name, value in fitted.weights.items():
        if not value.isfinite().all():
            key = ", ".join(family.table.published_names(name))
            raise CheckpointError(f"{file}: {key} holds values that are infinite or not a number; no network answers with them")
    unknown = [name for name in family.head_fields if name not in fitted.fields]
    if unknown:
        widths = [name.replace("heads", "width") for name in unknown]
        found_widths = [f"{width.replace('_', ' ')} {fitted.fields[width]}" for width in widths if width in fitted.fields]
        subject = " and ".join(found_widths) if len(found_widths) == len(unknown) else "its shapes"
        verb = "does" if len(found_widths) == len(unknown) == 1 else "do"
        heads, pronoun = " and of ".join(name.replace("_", " ") for name in unknown), "them" if unknown[1:] else "it"
        settings = " ".join(f"--set {name}=4" for name in unknown)
        raise CheckpointError(f"{file}: {subject} {verb} not determine the number of {heads}: set {pronoun}, as in {settings}")
    return fitted


def _check_size(file: Path, published: Mapping[str, Tensor], family: Family, declared: int) -> None:
    """Raise CheckpointError if the position table is of another image size than the stated one, UnlikeFamily if there is none."""
    table_size = family.config(family.table.translate(family.clean(published)).weights, {})["image_size"]
    if table_size != declared:
        raise CheckpointError(
            f"{file}: image_size {declared} is not that of its position table, {table_size}; "
            f"--set image_size={table_size} takes that of the table"
        )


def _provenance(
    file: Path, checkpoint: Checkpoint, family: Family, overrides: Mapping[str, str], config: Any, labels: Sequence[str]
) -> dict[str, Any]:
    # SlowFast's files have more than keys and config: an export writes it again
    described = {"cfg": checkpoint.description["cfg"]} if "cfg" in checkpoint.description else {}
    absent = [name for name in family.sidecar_fields if getattr(config, name) is None]
    assumed = [name for name in family.assumed if name not in overrides]
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    notes_found = [
        *checkpoint.notes,
        *(
            f"{name} {getattr(config, name)} is assumed, as published, since no weight determines it: --set {name}=… changes it"
            for name in assumed
        ),
        *([f"{', '.join(map(repr, repeated))}: the label of several classes, whose answers cannot be distinguished"] if repeated else []),
        *(f"{name} is in no file that was read: --set {name}={name}.npy puts it into the bundle" for name in absent),
    ]
    notes = {"notes": notes_found} if notes_found else {}
    left_out = _dropped_keys(checkpoint.weights, family)
    return {"file": file.name, "sha256": _sha256(file), "family": family.name, "set": dict(overrides), **described, **notes, **left_out}


def _transform_provenance(
    family: Family, transform: StatedTransform, preprocess: Preprocess | None, set_by_hand: ConfigFields, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Return the source of the preparation of images, for the provenance."""
    if preprocess is None:
        return {}
    if transform.source:
        return {"transform": f"read from {transform.source}"}
    file = "" if transform.note else hf_image_processor.FILE if hf_config.KEY in checkpoint.description else hf_config.FILE
    assumed = timm_transform.describe_assumption(f"that of family {family.name}", preprocess.model_dump(), set_by_hand, file)
    text = "; ".join(filter(None, (transform.note, assumed)))
    return {"transform": text or "set by hand"}


def _dropped_keys(published: Mapping[str, Tensor], family: Family) -> dict[str, list[str]]:
    """Return the keys that a file has in addition to the model; nothing if the family reads keys under other names."""
    tidied = family.clean(published)
    dropped = [key for key in published if key not in tidied]
    return {"left_out": collapse_block_numbers(dropped)} if dropped and len(dropped) + len(tidied) == len(published) else {}


def _sha256(file: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file of weights, or of the index that names them."""
    if file.is_dir():
        file = hf_folder.weights_file(file) if hf_folder.is_folder(file) else t5x.index_file(file)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
