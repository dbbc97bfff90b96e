"""A table of key names translates a published checkpoint into ours and back.

A table is a dict, published key → our key. In both, `{i}` stands for a block's number and `*` for one part of the name (weight or bias);
in published keys `{ii}` for a number that has two digits at least.
`{q,k,v}` in a published key names parts that are one matrix here: they are joined along the first axis in that order. Several published
keys may have the same meaning; the first is the one that is written.
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
    """Published keys that were needed and not there."""
    unexpected: list[str]
    """Published keys that mean nothing to us."""
    unjoinable: list[str]
    """Published keys of parts whose shapes do not go together."""


@dataclass(frozen=True)
class KeyTable:
    keys: Mapping[str, str]
    swapped: frozenset[str] = field(default_factory=frozenset)
    """Our keys whose first two axes are the other way round in the published file."""

    @cached_property
    def _rules(self) -> list[_Rule]:
        return [_Rule(theirs, ours) for theirs, ours in self.keys.items()]

    def translate(self, published: Mapping[str, Tensor], needed: Iterable[str] = ()) -> TranslatedWeights:
        """Published → ours. needed: our keys that must come out."""
        parts: dict[str, dict[int, str]] = {}  # published keys
        counts: dict[str, int] = {}
        unexpected = []
        for key in published:
            found = next((hit for rule in self._rules if (hit := rule.ours_of(key))), None)
            if found is None:
                unexpected.append(key)
                continue
            ours, part, count = found
            parts.setdefault(ours, {})[part] = key
            counts[ours] = count
        whole = {ours: [keys[i] for i in sorted(keys)] for ours, keys in parts.items() if len(keys) == counts[ours]}
        pieces = {ours: [published[key] for key in keys] for ours, keys in whole.items()}
        weights = {ours: self._swap(ours, _join(tensors)) for ours, tensors in pieces.items() if _are_joinable(tensors)}
        absent = [name for name in dict.fromkeys([*needed, *parts]) if name not in weights]
        missing = [key for name in absent for key in self.published_names(name) if key not in published]
        unjoinable = [key for ours, keys in whole.items() if ours not in weights for key in keys]
        return TranslatedWeights(weights, missing, unexpected, unjoinable)

    def unmatched(self, published: Iterable[str]) -> list[str]:
        """Rows of the table, as published keys with their placeholders, of which a file has none."""
        used = {rule.ours for rule in self._rules for key in published if rule.ours_of(key)}
        first = {rule.ours: rule.theirs for rule in reversed(self._rules)}
        return [theirs for ours, theirs in reversed(first.items()) if ours not in used]

    def export(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours → published. Raises KeyError for a name that the table does not have."""
        published: dict[str, Tensor] = {}
        for ours, value in weights.items():
            names = self.published_names(ours)
            if not names:
                raise KeyError(f"{ours} has no place in this format")
            whole = self._swap(ours, value)
            published.update(zip(names, whole.chunk(len(names)) if len(names) > 1 else [whole], strict=True))
        return published

    def published_names(self, ours: str) -> list[str]:
        """The published key or keys that hold one of our tensors; empty if none does."""
        return next((names for rule in self._rules if (names := rule.theirs_of(ours))), [])

    def _swap(self, ours: str, value: Tensor) -> Tensor:
        return value.transpose(0, 1) if ours in self.swapped and value.dim() > 1 else value


def _are_joinable(pieces: Sequence[Tensor]) -> bool:
    """Whether they are one tensor, or can be joined along the first axis."""
    return len(pieces) == 1 or (all(piece.dim() for piece in pieces) and len({piece.shape[1:] for piece in pieces}) == 1)


def _join(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


class _Rule:
    """One row of a table. Placeholders stand in the same order on both sides."""

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours
        joined = re.search(r"\{([a-z,]+,[a-z,]+)\}", theirs)
        self._parts = joined[1].split(",") if joined else [""]
        self._theirs = [theirs.replace(joined[0], part) for part in self._parts] if joined else [theirs]
        self._their_patterns = [_pattern(text) for text in self._theirs]
        self._our_pattern = _pattern(ours)

    def ours_of(self, key: str) -> tuple[str, int, int] | None:
        """(our key, which part of it, how many parts it has)."""
        for part, pattern in enumerate(self._their_patterns):
            if match := pattern.fullmatch(key):
                return _fill(self.ours, match.groups()), part, len(self._parts)
        return None

    def theirs_of(self, key: str) -> list[str]:
        match = self._our_pattern.fullmatch(key)
        return [_fill(text, match.groups()) for text in self._theirs] if match else []


def _pattern(text: str) -> re.Pattern[str]:
    pieces = {"{i}": r"(\d{1,9})", "{ii}": r"(\d{2,9})", "*": r"([^.]+)"}
    return re.compile("".join(pieces.get(piece) or re.escape(piece) for piece in _PLACEHOLDER.split(text)))


def _fill(text: str, values: tuple[str, ...]) -> str:
    rest = iter(values)
    number: dict[str, Callable[[str], str]] = {"{i}": lambda text: str(int(text)), "{ii}": lambda text: text.zfill(2), "*": str}
    return "".join(number[piece](next(rest)) if piece in number else piece for piece in _PLACEHOLDER.split(text))
