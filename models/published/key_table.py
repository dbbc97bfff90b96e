"""A table of key names translates a published checkpoint into ours and back.

A table is a dict, published key → our key. In both, `{i}` stands for a block's number and `*` for one part of the name (weight or bias);
in published keys `{ii}` for a number that has two digits at least.
`{q,k,v}` in a published key names parts that are one matrix here: they are joined along the first axis in that order. Several published
keys may have the same meaning; the first is the one that is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

_PLACEHOLDER = re.compile(r"(\{i\}|\*|\{[a-z,]+\})")


@dataclass(frozen=True)
class Translated:
    weights: dict[str, Tensor]
    """By our names."""
    missing: list[str]
    """Published keys that were needed and not there."""
    unexpected: list[str]
    """Published keys that mean nothing to us."""


@dataclass(frozen=True)
class KeyTable:
    keys: Mapping[str, str]
    swapped: frozenset[str] = field(default_factory=frozenset)
    """Our keys whose first two axes are the other way round in the published file."""

    @cached_property
    def _rules(self) -> list[_Rule]:
        return [_Rule(theirs, ours) for theirs, ours in self.keys.items()]

    def translate(self, published: Mapping[str, Tensor], needed: Iterable[str] = ()) -> Translated:
        """Published → ours. needed: our keys that must come out."""
        parts: dict[str, dict[int, Tensor]] = {}
        counts: dict[str, int] = {}
        unexpected = []
        for key, value in published.items():
            found = next((hit for rule in self._rules if (hit := rule.ours_of(key))), None)
            if found is None:
                unexpected.append(key)
                continue
            ours, part, count = found
            parts.setdefault(ours, {})[part] = value
            counts[ours] = count
        whole = {ours: [pieces[i] for i in sorted(pieces)] for ours, pieces in parts.items() if len(pieces) == counts[ours]}
        weights = {ours: self._swap(ours, torch.cat(pieces) if len(pieces) > 1 else pieces[0]) for ours, pieces in whole.items()}
        absent = [name for name in dict.fromkeys([*needed, *parts]) if name not in weights]
        missing = [key for name in absent for key in self.published_names(name) if key not in published]
        return Translated(weights, missing, unexpected)

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
        return value.transpose(0, 1) if ours in self.swapped else value


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
    pieces = {"{i}": r"(\d+)", "{ii}": r"(\d{2,})", "*": r"([^.]+)"}
    return re.compile("".join(pieces.get(piece) or re.escape(piece) for piece in _PLACEHOLDER.split(text)))


def _fill(text: str, values: tuple[str, ...]) -> str:
    rest = iter(values)
    number: dict[str, Callable[[str], str]] = {"{i}": lambda text: str(int(text)), "{ii}": lambda text: text.zfill(2), "*": str}
    return "".join(number[piece](next(rest)) if piece in number else piece for piece in _PLACEHOLDER.split(text))
