"""What a request's body holds, taken apart, whatever its form."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from server.gateway.surface import Surface
from server.http.problems import Kind, Problem
from server.tasks.base import Item

MAX_FIELD_BYTES = 4096
"""Of one option; options are short words."""


@dataclass
class Submission:
    """What a body holds: encoded parts in their order, and options as they were written."""

    surface: Surface
    max_images: int
    parts: dict[str, list[bytes]] = field(default_factory=dict)
    fields: dict[str, list[object]] = field(default_factory=dict)

    def add_part(self, name: str, content: bytes) -> None:
        """Raises Problem (413) for one too many."""
        given = self.parts.setdefault(name, [])
        limit = self.surface.parts[name].max_count
        if limit == 1 and given:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
        if len(given) == (self.max_images if limit is None else limit):
            setting = " (OPSIN_MAX_IMAGES)" if limit is None else ""
            raise Problem(Kind.TOO_LARGE, f"more than {len(given)} {name}s in one request{setting}", name)
        given.append(content)

    def add_field(self, name: str, value: object) -> None:
        given = self.fields.setdefault(name, [])
        if given and not self.surface.options[name].repeated:
            raise Problem(Kind.INVALID_OPTION, "given twice", name)
        given.append(value)

    @cached_property
    def repeated(self) -> str | None:
        """The part of which each element is an item of its own, if there is one. To be asked when the body has been read."""
        return next((name for name in self.parts if self.surface.parts[name].repeated), None)

    @property
    def nbytes(self) -> int:
        return sum(len(content) for given in self.parts.values() for content in given)

    def take_items(self) -> list[Item]:
        """What is prepared by itself: each element of the repeated part, with the others beside it. From now on the list alone holds them:
        they may be large, and are not needed while their small copies wait."""
        repeated, parts = self.repeated, dict(self.parts)
        self.parts.clear()
        once = {name: given[0] for name, given in parts.items() if not self.surface.parts[name].repeated}
        return [once] if repeated is None else [{repeated: content, **once} for content in parts[repeated]]

    @property
    def count(self) -> int:
        """Number of items."""
        return 1 if self.repeated is None else len(self.parts[self.repeated])


def item_field(name: str, index: int, count: int) -> str:
    """How errors name one of several elements of a part."""
    return name if count == 1 else f"{name}[{index}]"
