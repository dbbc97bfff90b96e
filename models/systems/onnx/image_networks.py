"""Bundle fields of a graph that classifies or embeds images, with the source of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from models.checkpoints import bundle_fields, timm_transform
from models.checkpoints.bundle_fields import PREPROCESS_FIELDS
from models.checkpoints.checkpoint_file import InvalidSetting
from models.checkpoints.family import IMAGENET_MEAN, IMAGENET_STD, ConfigFields, resize_and_crop
from models.systems.onnx.classifier import OnnxGraphConfig
from models.systems.onnx.companion_files import FILES, CompanionFiles, Purpose
from models.systems.onnx.signature import SIZE_HINT
from models.systems.onnx.trial import Trial

GRAPH_SETTINGS = ("image_size", "output", "range")
LOGIT_OUTPUTS = ("logits", "scores", "probabilities", "probs", "prob", "softmax")
VECTOR_OUTPUTS = ("embedding", "embeddings", "features", "pooler_output", "image_embeds", "vector", "vectors")
"""Names of outputs that indicate their content."""
CROP_RATIO = 256 / 224
"""Ratio of the short side to the image size if none is declared: that of torchvision's and most of timm's classifiers of ImageNet."""


def fields(
    file: Path, trial: Trial, companions: CompanionFiles, purpose: Purpose | None, labels: Sequence[str] | None, overrides: ConfigFields
) -> dict[str, Any]:
    """Return the fields. overrides: settings made by hand. Raises ValueError, and InvalidSetting for a wrong setting."""
    _check_settings(trial, overrides)
    rejection = companions.rejection(trial.numbers)
    usable = companions.drop_config() if rejection else companions
    task, reason = (purpose, "") if purpose else _purpose(file, trial, usable, rejection)
    if task == "classify":
        if rejection and trial.sized_by_files and usable.image_size is None:
            raise ValueError(f"{rejection}; {SIZE_HINT}")
        companions = usable
    classes = trial.numbers if task == "classify" else 0
    config = OnnxGraphConfig(
        image_size=trial.image_size,
        classes=classes,
        width=0 if classes else trial.numbers,
        output=trial.output,
        probabilities=bool(classes) and trial.probabilities,
    )
    preprocess, transform = _preparation(trial, companions, classes, overrides)
    names = bundle_fields.label_names(file, labels, companions.labels if classes else (), (), classes)
    notes = _notes(trial, task, reason, labels, companions)
    if classes and rejection and rejection not in transform:
        notes.append(rejection)
    return {
        "task": task,
        "config": dataclasses.asdict(config),
        "preprocess": preprocess,
        "labels": names,
        "provenance": {"transform": transform, **({"notes": notes} if notes else {})},
    }


def _check_settings(trial: Trial, overrides: ConfigFields) -> None:
    names = sorted({*GRAPH_SETTINGS, *PREPROCESS_FIELDS})
    for name in overrides:
        if name not in names:
            close = get_close_matches(name, names, 1)
            raise InvalidSetting(f"{name}: cannot be set; " + (f"is {close[0]} meant?" if close else f"what can be is {', '.join(names)}"))
    if trial.type == "uint8" and (wrong := sorted({"mean", "std", "range"} & overrides.keys())):
        raise InvalidSetting(f"{wrong[0]}: the graph takes bytes, from 0 to 255, and normalises them itself")
    if "range" in overrides and {"mean", "std"} & overrides.keys():
        raise InvalidSetting("range: mean and std say the same; set either range, or these two")


def _purpose(file: Path, trial: Trial, companions: CompanionFiles, rejection: str) -> tuple[Purpose, str]:
    """Return the task of the output, and the reason. rejection: why no config counts."""
    if len(companions.labels) == trial.numbers:
        return "classify", f"{companions.config} names as many labels ({trial.numbers})"
    if companions.purpose is not None:
        return companions.purpose, f"{companions.config} says so"
    if trial.probabilities:
        return "classify", "its numbers are probabilities"
    name = trial.output.lower()
    if name in LOGIT_OUTPUTS:
        return "classify", f"its output is called {trial.output}"
    if name in VECTOR_OUTPUTS:
        return "embed", f"its output is called {trial.output}"
    raise InvalidSetting(
        f"{file.name}: are its {trial.numbers} numbers an image's logits or a vector? "
        f"Say --as classify (or --labels FILE) or --as embed{f' ({rejection})' if rejection else ''}"
    )


def _preparation(trial: Trial, companions: CompanionFiles, classes: int, overrides: ConfigFields) -> tuple[ConfigFields, str]:
    size = trial.image_size
    defaults = resize_and_crop(CROP_RATIO, IMAGENET_MEAN, IMAGENET_STD)(size).model_dump()
    explicit = {key: value for key, value in overrides.items() if key in PREPROCESS_FIELDS} | _range(trial, overrides)
    if explicit.get("fit") == "squeeze":
        defaults["short_side"] = size
    declared = companions.transform(classes)
    preprocess = defaults | declared.fields(size, explicit) | explicit
    if declared.source:
        return preprocess, f"read from {declared.source}"
    assumed = timm_transform.describe_assumption("as usual for ImageNet", preprocess, explicit, "" if declared.note else FILES)
    return preprocess, "; ".join(filter(None, (declared.note, assumed))) or "set by hand"


def _range(trial: Trial, overrides: ConfigFields) -> ConfigFields:
    """Return `mean` and `std` of a range of input, such as `range` = [0, 255]."""
    if trial.type == "uint8":
        return {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if "range" not in overrides:
        return {}
    value = overrides["range"]
    if not isinstance(value, list) or len(value) != 2 or not all(type(end) in (int, float) for end in value) or value[0] >= value[1]:
        raise InvalidSetting(f"range {value!r}: two rising numbers are needed, such as range=0,255 or range=-1,1")
    low, high = value
    return {"mean": (-low / (high - low),) * 3, "std": (1 / (high - low),) * 3}


def _notes(trial: Trial, task: Purpose, reason: str, labels: Sequence[str] | None, companions: CompanionFiles) -> list[str]:
    other = "embed" if task == "classify" else "classify"
    return [
        note
        for note, applies in (
            (f"taken for task {task}, since {reason}; --as {other} takes it for the other", bool(reason)),
            (f"output {trial.output} is taken, and {', '.join(trial.others)} left out; --set output=NAME chooses", bool(trial.others)),
            (
                f"the graph has a fixed batch of {trial.batch}: it is served with batches of {trial.batch}"
                + (", the last one filled up" if (trial.batch or 0) > 1 else ", one image after the other"),
                trial.batch is not None,
            ),
            ("the graph takes bytes, from 0 to 255, and normalises them itself", trial.type == "uint8"),
            ("its output is probabilities, of which the logarithm is taken", task == "classify" and trial.probabilities),
            (f"labels are those of {companions.config}", bool(task == "classify" and labels is None and companions.labels)),
        )
        if applies
    ]
