"""The fields of a bundle for a graph that classifies or embeds images, and where each of them comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from models.checkpoints import bundle_fields, timm_transform
from models.checkpoints.checkpoint_file import InvalidSetting
from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, resize_and_crop
from models.checkpoints.import_settings import PREPROCESS_FIELDS
from models.systems.onnx.beside import FILES, Beside, Purpose
from models.systems.onnx.classifier import OnnxGraphConfig
from models.systems.onnx.signature import UNSIZED
from models.systems.onnx.trial import Trial

OWN = ("image_size", "output", "range")
LOGITS = ("logits", "scores", "probabilities", "probs", "prob", "softmax")
VECTORS = ("embedding", "embeddings", "features", "pooler_output", "image_embeds", "vector", "vectors")
"""Names of outputs that tell what they hold."""
CROP = 256 / 224
"""Short side by the side of the image, where nobody states it: that of torchvision's and most of timm's classifiers of ImageNet."""


def fields(
    file: Path, trial: Trial, stated: Beside, purpose: Purpose | None, labels: Sequence[str] | None, given: ConfigFields
) -> dict[str, Any]:
    """given: settings made by hand. Raises ValueError, and WrongSetting where one of these is wrong."""
    _check_settings(trial, given)
    rejection = stated.rejection(trial.numbers)
    known = stated.without_config() if rejection else stated
    task, reason = (purpose, "") if purpose else _purpose(file, trial, known, rejection)
    if task == "classify":
        if rejection and trial.sized_by_files and known.image_size is None:
            raise ValueError(f"{rejection}; {UNSIZED}")
        stated = known
    classes = trial.numbers if task == "classify" else 0
    config = OnnxGraphConfig(
        image_size=trial.image_size,
        classes=classes,
        width=0 if classes else trial.numbers,
        output=trial.output,
        probabilities=bool(classes) and trial.probabilities,
    )
    preprocess, transform = _preparation(trial, stated, classes, given)
    names = bundle_fields.label_names(file, labels, stated.labels if classes else (), (), classes)
    notes = _notes(trial, task, reason, labels, stated)
    if classes and rejection and rejection not in transform:
        notes.append(rejection)
    return {
        "task": task,
        "config": dataclasses.asdict(config),
        "preprocess": preprocess,
        "labels": names,
        "provenance": {"transform": transform, **({"notes": notes} if notes else {})},
    }


def _check_settings(trial: Trial, given: ConfigFields) -> None:
    known = sorted({*OWN, *PREPROCESS_FIELDS})
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, 1)
            raise InvalidSetting(f"{name}: cannot be set; " + (f"is {close[0]} meant?" if close else f"what can be is {', '.join(known)}"))
    if trial.type == "uint8" and (wrong := sorted({"mean", "std", "range"} & given.keys())):
        raise InvalidSetting(f"{wrong[0]}: the graph takes bytes, from 0 to 255, and normalises them itself")
    if "range" in given and {"mean", "std"} & given.keys():
        raise InvalidSetting("range: mean and std say the same; set either range, or these two")


def _purpose(file: Path, trial: Trial, stated: Beside, rejection: str) -> tuple[Purpose, str]:
    """Task that the numbers are for, and the reason. rejection: why no config counts."""
    if len(stated.labels) == trial.numbers:
        return "classify", f"{stated.config} names as many labels ({trial.numbers})"
    if stated.purpose is not None:
        return stated.purpose, f"{stated.config} says so"
    if trial.probabilities:
        return "classify", "its numbers are probabilities"
    name = trial.output.lower()
    if name in LOGITS:
        return "classify", f"its output is called {trial.output}"
    if name in VECTORS:
        return "embed", f"its output is called {trial.output}"
    raise InvalidSetting(
        f"{file.name}: are its {trial.numbers} numbers an image's logits or a vector? "
        f"Say --as classify (or --labels FILE) or --as embed{f' ({rejection})' if rejection else ''}"
    )


def _preparation(trial: Trial, stated: Beside, classes: int, given: ConfigFields) -> tuple[ConfigFields, str]:
    """→ fields of `Preprocess`, and where they come from."""
    size = trial.image_size
    usual = resize_and_crop(CROP, IMAGENET_MEAN, IMAGENET_STD)(size).model_dump()
    chosen = {key: value for key, value in given.items() if key in PREPROCESS_FIELDS} | _range(trial, given)
    if chosen.get("fit") == "squeeze":
        usual["short_side"] = size
    found = stated.transform(classes)
    prepared = usual | found.fields(size, chosen) | chosen
    if found.source:
        return prepared, f"read from {found.source}"
    assumed = timm_transform.describe_assumption("as usual for ImageNet", prepared, chosen, "" if found.note else FILES)
    return prepared, "; ".join(filter(None, (found.note, assumed))) or "set by hand"


def _range(trial: Trial, given: ConfigFields) -> ConfigFields:
    """`mean` and `std` of a range of input, such as `range` = [0, 255]."""
    if trial.type == "uint8":
        return {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if "range" not in given:
        return {}
    value = given["range"]
    if not isinstance(value, list) or len(value) != 2 or not all(type(end) in (int, float) for end in value) or value[0] >= value[1]:
        raise InvalidSetting(f"range {value!r}: two rising numbers are needed, such as range=0,255 or range=-1,1")
    low, high = value
    return {"mean": (-low / (high - low),) * 3, "std": (1 / (high - low),) * 3}


def _notes(trial: Trial, task: Purpose, reason: str, labels: Sequence[str] | None, stated: Beside) -> list[str]:
    other = "embed" if task == "classify" else "classify"
    return [
        note
        for note, holds in (
            (f"taken for task {task}, since {reason}; --as {other} takes it for the other", bool(reason)),
            (f"output {trial.output} is taken, and {', '.join(trial.others)} left out; --set output=NAME chooses", bool(trial.others)),
            (
                f"the graph has a fixed batch of {trial.batch}: it is served with batches of {trial.batch}"
                + (", the last one filled up" if (trial.batch or 0) > 1 else ", one image after the other"),
                trial.batch is not None,
            ),
            ("the graph takes bytes, from 0 to 255, and normalises them itself", trial.type == "uint8"),
            ("its output is probabilities, of which the logarithm is taken", task == "classify" and trial.probabilities),
            (f"labels are those of {stated.config}", bool(task == "classify" and labels is None and stated.labels)),
        )
        if holds
    ]
