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
from models.systems.image_text.tokenizer import known

TEXTS = 64
"""Texts that the text tower reads at a time."""
UNSEALED = FileDigest(sha256="0" * 64, bytes=0)
"""`write` fills in the real ones."""
TOWER = "vision."


def label(
    pair: Bundle, labels: Sequence[str], root: Path, name: str, version: str = "1", *, templates: Sequence[str] | None = None
) -> tuple[Bundle, int]:
    """Write the classifier `root/name/version`. templates: sentences with one `{}` each; None: the pair's own.

    Return it and the number of labels that were too long for the pair and lost their end. Raises BundleError for a bundle that is no pair
    or has no tokenizer, for labels that no request could have, and for a pair whose image head is not linear.
    """
    text = _text_of(pair)
    labels = _checked(labels)
    text = TextSpec.model_validate(text.model_dump() | {"templates": list(templates)}) if templates is not None else text
    loaded = load(pair)
    read = known(pair, labels)
    if not read.all():
        raise BundleError(f"labels: {labels[int(read.argmin())]!r} has no word or character that {pair.spec.id} knows")
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


def _text_of(pair: Bundle) -> TextSpec:
    spec = pair.spec
    if spec.task != "zero-shot":
        raise BundleError(f"{spec.id}: is of task {spec.task}; a classifier is made of an image-text pair, of task zero-shot")
    if spec.text is None:
        raise BundleError(f"{spec.id}: has no tokenizer and reads no texts; `opsin bundles tokenizer {spec.name} FILE` adds one")
    if spec.text.scores != "softmax":
        raise BundleError(f"{spec.id}: judges each label on its own ({spec.text.scores}), and classifiers answer with a softmax")
    return spec.text


def _checked(labels: Sequence[str]) -> list[str]:
    """Labels without spaces around them."""
    stripped = [label.strip() for label in labels]
    if len(stripped) < 2:
        raise BundleError(f"labels: {len(stripped)} given; at least two are needed")
    if "" in stripped:
        raise BundleError(f"labels: number {stripped.index('') + 1} is empty")
    for number, one in enumerate(stripped):
        if stripped.index(one) != number:
            raise BundleError(f"labels: {one!r} is given twice")
    return stripped


def _is_half(pair: Bundle) -> bool:
    """Whether all weights are float16 in its file."""
    with safe_open(pair.weights_path, framework="pt") as file:
        return {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118 (it is no dict)


def _image_tower(spec: BundleSpec, model: Any) -> tuple[dict[str, Tensor], Any, int]:
    """Weights of the ViT and its projection under the names of `ViT`, its config, and the width of the space."""
    if isinstance(model, CiT) and model.head is not None:
        raise BundleError(f"{spec.id}: its images pass MoCo-v3's projector, three layers that a ViT's head has no place for")
    if isinstance(model, MAWSClip):
        projection = model.vision_projection.T
    elif isinstance(model, CiT | FLIP | CLIP):
        projection = model.vision_projection.weight
    else:
        raise BundleError(f"{spec.id}: architecture {spec.architecture} is none of MAWS, FLIP, CiT and CLIP")
    tower = {key.removeprefix(TOWER): value for key, value in model.state_dict().items() if key.startswith(TOWER)}
    kept = {key: value for key, value in tower.items() if not key.startswith("head.")}  # AugReg's own head is not used
    return {**kept, "projection.weight": projection}, model.config.vision, int(projection.shape[0])


def _class_vectors(loaded: LoadedModel, labels: Sequence[str], text: TextSpec) -> tuple[NDArray[np.float32], int]:
    """(labels, joint_width), unit length: the mean over the templates; and how many labels lost their end."""
    texts = [template.replace("{}", label) for label in labels for template in text.templates]
    rows, cut = list[NDArray[np.float32]](), list[NDArray[np.bool_]]()
    for first in range(0, len(texts), TEXTS):
        found = loaded.forward(_arrays(texts[first : first + TEXTS]), {})
        rows.append(found["embedding"][0])
        cut.append(found["truncated"][0])
    vectors = np.concatenate(rows).reshape(len(labels), len(text.templates), -1).mean(axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(vectors).all():
        raise BundleError(f"{loaded.spec.id}: gives labels vectors that are no numbers")
    return vectors, int(np.concatenate(cut).reshape(len(labels), -1).any(axis=1).sum())


def _arrays(texts: Sequence[str]) -> Mapping[str, NDArray[Any]]:
    """One job with all texts: utf8 uint8 (1, R, W), filled up with zeros, and lengths int32 (1, R)."""
    encoded = [text.encode() for text in texts]
    lengths = np.array([[len(one) for one in encoded]], np.int32)
    utf8 = np.zeros((1, len(encoded), int(lengths.max())), np.uint8)
    for row, one in zip(utf8[0], encoded, strict=True):
        row[: len(one)] = np.frombuffer(one, np.uint8)
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
        ladder=[Rung(name=rung.name, schedule=rung.schedule) for rung in pair.ladder],  # what was measured is of another task
        weights=UNSEALED,
    )
