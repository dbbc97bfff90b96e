"""Tables of key names that translate published checkpoints to our names, and back.

A table is a dict, published key → our key. In both, `{i}` stands for a block's number and `*` for one part of the name (weight or bias); in
published keys `{ii}` for a number that has two digits at least.

`{q,k,v}` in a published key names parts that are one matrix here: they are joined along the first axis in that order. If several published
keys have the same meaning, exports write the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

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
