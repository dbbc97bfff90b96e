"""An image-text pair and a list of labels → a classifier without the text tower, whose scores are those of zero-shot classification.

Zero-shot logits are scale × cosine(image, class) (CLIP, arXiv 2103.00020, section 3.1.2). The classes' vectors do not depend on the image,
so scale × vector becomes the head's matrix. The image's length does: the classifier projects features into the pair's space and divides
them by their length there (`ViTConfig.joint_width`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.bundle import Bundle, BundleError, BundleSpec, write
from models.bundle_schema import FileDigest, Rung, TextSpec
from models.loading import LoadedModel, load
from models.systems.image_text.cit import CiT
from models.systems.image_text.clip import CLIP
from models.systems.image_text.flip import FLIP
from models.systems.image_text.maws import MAWSClip
from models.systems.image_text.tokenizer import has_known_piece

TEXTS_PER_PASS = 64
"""Number of texts that the text tower encodes in one pass."""
PLACEHOLDER_DIGEST = FileDigest(sha256="0" * 64, bytes=0)
TOWER_PREFIX = "vision."


def make_zero_shot_classifier(
    pair: Bundle, labels: Sequence[str], root: Path, name: str, version: str = "1", *, templates: Sequence[str] | None = None
) -> tuple[Bundle, int]:
    """Write the classifier `root/name/version`; return it and the number of labels that were truncated.

    templates: sentences with one `{}` each; None: the pair's own. Raises BundleError for a bundle that is not a pair or has no tokenizer,
    for invalid labels, and for a pair whose image head is not linear.
    """
    text = _require_text(pair)
    labels = _clean_labels(labels)
    text = TextSpec.model_validate(text.model_dump() | {"templates": list(templates)}) if templates is not None else text
    loaded = load(pair)
    is_known = has_known_piece(pair, labels)
    if not is_known.all():
        raise BundleError(f"labels: {labels[int(is_known.argmin())]!r} has no word or character in the vocabulary of {pair.spec.id}")
    weights, vision, joint_width = _image_tower(pair.spec, loaded.model)
    if _is_half(pair):
        weights = {key: value.half() for key, value in weights.items()}
    classes, truncated = _class_vectors(loaded, labels, text)
    weights["head.weight"] = torch.from_numpy(classes) * text.scale
    weights["head.bias"] = torch.zeros(len(labels))
    config = dataclasses.asdict(dataclasses.replace(vision, classes=len(labels), joint_width=joint_width))
    spec = _spec(pair.spec, labels, text, config, name, version)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file({key: value.contiguous() for key, value in weights.items()}, file)
        return write(root, spec, file), truncated


def _require_text(pair: Bundle) -> TextSpec:
    spec = pair.spec
    if spec.task != "zero-shot":
        raise BundleError(f"{spec.id}: is of task {spec.task}; a classifier is made of an image-text pair, of task zero-shot")
    if spec.text is None:
        raise BundleError(f"{spec.id}: has no tokenizer; `opsin bundles tokenizer {spec.name} FILE` adds one")
    if spec.text.scores != "softmax":
        raise BundleError(f"{spec.id}: scores each label separately ({spec.text.scores}), but classifiers use a softmax")
    return spec.text


def _clean_labels(labels: Sequence[str]) -> list[str]:
    """Strip labels. Raises BundleError for fewer than two, empty ones and duplicates."""
    stripped = [label.strip() for label in labels]
    if len(stripped) < 2:
        raise BundleError(f"labels: {len(stripped)} given; at least two are needed")
    if "" in stripped:
        raise BundleError(f"labels: number {stripped.index('') + 1} is empty")
    for number, label in enumerate(stripped):
        if stripped.index(label) != number:
            raise BundleError(f"labels: {label!r} is given twice")
    return stripped


def _is_half(pair: Bundle) -> bool:
    """Return True if all weights are float16 in the bundle's file."""
    with safe_open(pair.weights_path, framework="pt") as file:
        return {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118 (it is not a dict)


def _image_tower(spec: BundleSpec, model: Any) -> tuple[dict[str, Tensor], Any, int]:
    """Return the weights of the ViT and its projection under the names of `ViT`, its config, and the width of the space."""
    if isinstance(model, CiT) and model.head is not None:
        raise BundleError(f"{spec.id}: its images pass MoCo-v3's projector, three layers that a ViT's head has no place for")
    if isinstance(model, MAWSClip):
        projection = model.vision_projection.T
    elif isinstance(model, CiT | FLIP | CLIP):
        projection = model.vision_projection.weight
    else:
        raise BundleError(f"{spec.id}: architecture {spec.architecture} is none of MAWS, FLIP, CiT and CLIP")
    tower = {key.removeprefix(TOWER_PREFIX): value for key, value in model.state_dict().items() if key.startswith(TOWER_PREFIX)}
    weights = {key: value for key, value in tower.items() if not key.startswith("head.")}  # AugReg's own head is not used
    return {**weights, "projection.weight": projection}, model.config.vision, int(projection.shape[0])


def _class_vectors(loaded: LoadedModel, labels: Sequence[str], text: TextSpec) -> tuple[NDArray[np.float32], int]:
    """Return the mean vectors of labels over the templates, (labels, joint_width), unit length, and the number of truncated labels."""
    texts = [template.replace("{}", label) for label in labels for template in text.templates]
    rows, truncated = list[NDArray[np.float32]](), list[NDArray[np.bool_]]()
    for first in range(0, len(texts), TEXTS_PER_PASS):
        outputs = loaded.forward(_text_arrays(texts[first : first + TEXTS_PER_PASS]), {})
        rows.append(outputs["embedding"][0])
        truncated.append(outputs["truncated"][0])
    vectors = np.concatenate(rows).reshape(len(labels), len(text.templates), -1).mean(axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(vectors).all():
        raise BundleError(f"{loaded.spec.id}: the labels' vectors have infinite values or NaN")
    return vectors, int(np.concatenate(truncated).reshape(len(labels), -1).any(axis=1).sum())


def _text_arrays(texts: Sequence[str]) -> Mapping[str, NDArray[Any]]:
    """Return one job with all texts: utf8 uint8 (1, R, W), padded with zeros, and lengths int32 (1, R)."""
    encoded = [text.encode() for text in texts]
    lengths = np.array([[len(text) for text in encoded]], np.int32)
    utf8 = np.zeros((1, len(encoded), int(lengths.max())), np.uint8)
    for row, text in zip(utf8[0], encoded, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return {"utf8": utf8, "lengths": lengths}


def _spec(pair: BundleSpec, labels: list[str], text: TextSpec, config: dict[str, Any], name: str, version: str) -> BundleSpec:
    return BundleSpec(
        name=name,
        version=version,
        task="classify",
        architecture="vit",
        config=config,
        preprocess=pair.preprocess,
        labels=labels,
        license=pair.license,
        description=f"{pair.id} with {len(labels)} labels of its own",
        trained_on=pair.trained_on,
        note=pair.note,
        provenance={"pair": pair.id, "pair_digest": pair.digest(), "templates": text.templates, "scale": text.scale},
        ladder=[Rung(name=rung.name, schedule=rung.schedule) for rung in pair.ladder],  # measurements are of another task
        weights=PLACEHOLDER_DIGEST,
    )
