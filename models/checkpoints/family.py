"""Families of published checkpoints: key names, facts that the files lack, and the preparation of images.

A table of keys translates published names to ours, and back. It is a dict, published key → our key. In both, `{i}` stands for a block's
number and `*` for one part of the name (weight or bias); in published keys `{ii}` for a number that has two digits at least.

`{q,k,v}` in a published key names parts that are one matrix here: they are joined along the first axis in that order. If several published
keys have the same meaning, exports write the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.bundle_schema import Preprocess
from models.registry import resolve, systems

_PLACEHOLDER = re.compile(r"(\{i\}|\*|\{[a-z,]+\})")


@dataclass(frozen=True)
class TranslatedWeights:
    weights: dict[str, Tensor]
    """Our name → tensor."""
    missing: list[str]
    """Published keys that were needed and are missing."""
    unexpected: list[str]
    """Published keys without a meaning here."""
    unjoinable: list[str]
    """Published keys of parts whose shapes do not fit together."""


@dataclass(frozen=True)
class KeyTable:
    keys: Mapping[str, str]
    swapped: frozenset[str] = field(default_factory=frozenset)
    """Our keys whose first two axes are swapped in published files."""

    @cached_property
    def _rules(self) -> list[_Rule]:
        return [_Rule(upstream_key, key) for upstream_key, key in self.keys.items()]

    def translate(self, published: Mapping[str, Tensor], needed: Iterable[str] = ()) -> TranslatedWeights:
        """Translate published weights to ours. needed: our keys that must result."""
        parts: dict[str, dict[int, str]] = {}  # published keys
        counts: dict[str, int] = {}
        unexpected = []
        for key in published:
            match = next((hit for rule in self._rules if (hit := rule.find_key(key))), None)
            if match is None:
                unexpected.append(key)
                continue
            name, part, count = match
            parts.setdefault(name, {})[part] = key
            counts[name] = count
        complete = {name: [keys[i] for i in sorted(keys)] for name, keys in parts.items() if len(keys) == counts[name]}
        pieces = {name: [published[key] for key in keys] for name, keys in complete.items()}
        weights = {name: self._swap(name, _join(tensors)) for name, tensors in pieces.items() if _are_joinable(tensors)}
        absent = [name for name in dict.fromkeys([*needed, *parts]) if name not in weights]
        missing = [key for name in absent for key in self.published_names(name) if key not in published]
        unjoinable = [key for name, keys in complete.items() if name not in weights for key in keys]
        return TranslatedWeights(weights, missing, unexpected, unjoinable)

    def unmatched_rows(self, published: Iterable[str]) -> list[str]:
        """Return the rows of the table of which a file has no key, as published keys with their placeholders."""
        used = {rule.key for rule in self._rules for key in published if rule.find_key(key)}
        first = {rule.key: rule.upstream_key for rule in reversed(self._rules)}
        return [upstream_key for key, upstream_key in reversed(first.items()) if key not in used]

    def export(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate our weights to published ones. Raises KeyError for a name that the table does not have."""
        published: dict[str, Tensor] = {}
        for name, value in weights.items():
            names = self.published_names(name)
            if not names:
                raise KeyError(f"{name} has no place in this format")
            published_value = self._swap(name, value)
            published.update(zip(names, published_value.chunk(len(names)) if len(names) > 1 else [published_value], strict=True))
        return published

    def published_names(self, name: str) -> list[str]:
        """Return the published key or keys of one of our tensors; empty if there is none."""
        return next((names for rule in self._rules if (names := rule.upstream_keys_of(name))), [])

    def _swap(self, name: str, value: Tensor) -> Tensor:
        return value.transpose(0, 1) if name in self.swapped and value.dim() > 1 else value


def _are_joinable(pieces: Sequence[Tensor]) -> bool:
    """Return True for one tensor, or several that can be joined along the first axis."""
    return len(pieces) == 1 or (all(piece.dim() for piece in pieces) and len({piece.shape[1:] for piece in pieces}) == 1)


def _join(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


class _Rule:
    """One row of a table. Placeholders are in the same order on both sides."""

    def __init__(self, upstream_key: str, key: str) -> None:
        self.upstream_key, self.key = upstream_key, key
        joined = re.search(r"\{([a-z,]+,[a-z,]+)\}", upstream_key)
        self._parts = joined[1].split(",") if joined else [""]
        self._upstream_keys = [upstream_key.replace(joined[0], part) for part in self._parts] if joined else [upstream_key]
        self._upstream_patterns = [_pattern(text) for text in self._upstream_keys]
        self._key_pattern = _pattern(key)

    def find_key(self, key: str) -> tuple[str, int, int] | None:
        """Return our key, the index of the part, and the number of its parts; None for another key."""
        for part, pattern in enumerate(self._upstream_patterns):
            if match := pattern.fullmatch(key):
                return _fill(self.key, match.groups()), part, len(self._parts)
        return None

    def upstream_keys_of(self, key: str) -> list[str]:
        match = self._key_pattern.fullmatch(key)
        return [_fill(text, match.groups()) for text in self._upstream_keys] if match else []


def _pattern(text: str) -> re.Pattern[str]:
    pieces = {"{i}": r"(\d{1,9})", "{ii}": r"(\d{2,9})", "*": r"([^.]+)"}
    return re.compile("".join(pieces.get(piece) or re.escape(piece) for piece in _PLACEHOLDER.split(text)))


def _fill(text: str, values: tuple[str, ...]) -> str:
    rest = iter(values)
    fillers: dict[str, Callable[[str], str]] = {"{i}": lambda text: str(int(text)), "{ii}": lambda text: text.zfill(2), "*": str}
    return "".join(fillers[piece](next(rest)) if piece in fillers else piece for piece in _PLACEHOLDER.split(text))


RGB = tuple[float, float, float]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
KINETICS_MEAN: RGB = (0.45, 0.45, 0.45)
KINETICS_STD: RGB = (0.225, 0.225, 0.225)
"""Used by SlowFast and MAE-ST."""

HUGE_MODEL_HEADS = {1280: 16, 2560: 32, 4096: 32}
"""Width → number of heads of the models from huge on (MAE, MAWS), whose heads are wider than 64 channels."""

AUTOENCODER_HEADS = ("heads", "decoder_heads")
"""`Family.head_fields` of masked autoencoders."""

ConfigFields = dict[str, Any]


@dataclass(frozen=True)
class Family:
    name: str
    architecture: str
    table: KeyTable
    config: Callable[[Mapping[str, Tensor], ConfigFields], ConfigFields]
    """Infers config fields from weights under our names and from fields that were set by hand. Raises UnlikeFamily."""
    preprocess: Callable[[int], Preprocess]
    """Maps an image size to the preparation of images."""
    smooth: bool = False
    """Whether frames of clips are antialiased when they shrink (`Clip.smooth`)."""
    defaults: ConfigFields = field(default_factory=dict)
    """Config fields that keys and shapes do not determine."""
    head_fields: tuple[str, ...] = ("heads",)
    """Fields of the config that count attention heads, on which no shape depends."""
    clean: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda published: published
    """Turns a file's weights into those of the table: without wrappers in the names and unused tensors, in PyTorch's layouts."""
    resized: Callable[[dict[str, Tensor], Any], dict[str, Tensor]] = lambda weights, config: weights
    """Adapts weights by our names to a config's image size, if their own is another."""
    completed: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda published: published
    """Turns exported weights into those of a published file: in its layouts, and with its duplicates."""
    own_size: bool = False
    """Whether the `image_size` in its files must be that of the position table, which `config` infers from weights alone."""
    headless: bool = False
    """Whether a file without a head can be read for its features, with `classes=0`."""
    wrapper: str | None = "model"
    """Key of the weights in the family's torch files; None: the weights are the file."""
    folder: Callable[[Path, Mapping[str, Tensor]], None] | None = None
    """Writes the published weights as a folder, if the family's checkpoints are folders."""
    describe: Callable[[Any], dict[str, Any]] = lambda config: {}
    """Writes what `described` reads. Raises ValueError for a config that a file cannot express."""
    sidecar_fields: tuple[str, ...] = ()
    """Fields of the config that are in further files: an import requests them."""
    assumed: tuple[str, ...] = ()
    """Fields of the config that `config` takes from the published sizes unless they are set by hand: an import notes them."""
    dropped_note: str = ""
    """Names of what its files contain in addition to the model: imports drop it, exports lack it, and the published loaders do without."""
    described: Callable[[Mapping[str, Any]], ConfigFields] = lambda description: {}
    """Reads config fields from a file's own description, `Checkpoint.description`. Raises ValueError."""

    def export(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate our weights to published ones. Raises KeyError for a name that this family's files do not have."""
        return self.completed(self.table.export(weights))


class UnlikeFamily(ValueError):
    """Error of weights that lack what every checkpoint of a family has; the message names it."""


def decoder_fields(weights: Mapping[str, Tensor], half: str = "") -> ConfigFields:
    """Infer the fields of a masked autoencoder's decoder. Its heads have 32 channels in the published sizes. half: prefix of the names."""
    _, width = shape_of(weights, f"{half}decoder_pred.weight", 2)
    fields: ConfigFields = {"decoder_width": width, "decoder_depth": depth_of(weights, f"{half}decoder_blocks")}
    if width % 32 == 0:
        fields["decoder_heads"] = width // 32
    return fields


def block_fields(weights: Mapping[str, Tensor], width: int) -> ConfigFields:
    """Infer the fields of blocks and head that all our transformers have."""
    hidden, _ = shape_of(weights, "blocks.0.mlp.fc1.weight", 2)
    fields: ConfigFields = {
        "depth": depth_of(weights, "blocks"),
        "mlp_ratio": mlp_ratio_of(hidden, width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }
    if "head.weight" in weights:
        fields["classes"] = weights["head.weight"].shape[0]
    heads = published_heads(width)
    if heads is not None:
        fields["heads"] = heads
    return fields


def mlp_ratio_of(hidden: int, width: int) -> float:
    """Return a ratio for which `int(width * ratio)` is `hidden`: models truncate the product, and the quotient may be slightly too low."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def depth_of(weights: Mapping[str, Tensor], blocks: str) -> int:
    """Return the number of blocks under a name. Raises UnlikeFamily if it has fewer tensors than that."""
    indices = [int(match[1]) for key in weights if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", key))]
    depth = 1 + max(indices, default=-1)
    if depth > len(indices):  # else one name could require a network of any depth
        raise UnlikeFamily(f"{blocks}.{depth - 1} is the last of its blocks, of which it has {len(set(indices))}")
    return depth


def published_heads(width: int) -> int | None:
    """Return the number of heads: width // 64, except for the huge sizes. None if 64 does not divide the width."""
    if width in HUGE_MODEL_HEADS:
        return HUGE_MODEL_HEADS[width]
    return width // 64 if width % 64 == 0 else None


def shape_of(weights: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in weights:
        raise UnlikeFamily(f"it lacks {key}")
    shape = tuple(weights[key].shape)
    if len(shape) != dimensions:
        raise UnlikeFamily(f"{key} has {len(shape)} dimensions, not {dimensions}")
    if 0 in shape:
        raise UnlikeFamily(f"{key} {shape} is empty")
    return shape


def side_of(patches: int) -> int:
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        raise UnlikeFamily(f"its position table has {patches} patches, which is not a square")
    return side


def resize_and_crop(
    ratio: float, mean: RGB, std: RGB, interpolation: Literal["bicubic", "bilinear"] = "bicubic"
) -> Callable[[int], Preprocess]:
    """Return a preparation: short side to `ratio` times the image size, truncated; then the centre."""
    return lambda size: Preprocess(image_size=size, short_side=int(ratio * size), interpolation=interpolation, mean=mean, std=std)


def squeeze(size: int) -> Preprocess:
    """Return a preparation: the whole image into a square, whatever its proportions."""
    return Preprocess(image_size=size, short_side=size, fit="squeeze", interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def families() -> Mapping[str, Family]:
    """Return all families by name. Imports the code of every system."""
    return {name: resolve(reference) for system in systems() for name, reference in system.families.items()}
