"""Options as one table: the fields of a struct, with types, ranges and defaults. Parsing, OpenAPI and documentation are made from it."""

from __future__ import annotations

import functools
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import msgspec
from msgspec import NODEFAULT, Meta
from msgspec.inspect import BoolType, FloatType, IntType, StrType, Type, UnionType, type_info

from models.bundle import BundleSpec
from models.merge_schedule import MAX_MERGED_TOKENS, MergeSchedule
from server.quote import quote


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every table. A field of type `X | None` has no default of its own: the bundle decides.

    `Meta(description=…)` describes it; `extra={"values": …, "default": …}` describes what the type cannot express, and `words` does so in
    errors.
    """


class InvalidOption(ValueError):
    """An option that is malformed, or that the bundle does not support; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ExcessiveOption(InvalidOption):
    """A valid option that exceeds a limit of requests."""


@dataclass(frozen=True)
class Option:
    """One row of a table."""

    name: str
    description: str
    values: str
    """Accepted values, for the documentation."""
    words: str
    """Values that its type accepts, for errors."""
    default: str
    """Description of the default."""
    repeated: bool
    """Whether it may be given any number of times; in JSON a list."""
    schema: Mapping[str, Any]
    """JSON Schema."""
    kind: Any
    """The type that values are converted to."""

    def read(self, values: Sequence[object]) -> Any:
        """Convert text from a URL or a form, or values from JSON. Raises InvalidOption."""
        if not self.repeated and len(values) > 1:
            raise InvalidOption(self.name, "given twice")
        value = list(values) if self.repeated else values[0]
        try:
            read = msgspec.convert(value, self.kind, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidOption(self.name, f"{quote(value)} must be {self.words}") from error
        if isinstance(read, float) and not math.isfinite(read):
            raise InvalidOption(self.name, f"{quote(value)} must be {self.words}")
        return read

    def accepts(self, value: object) -> bool:
        """Return whether this value is valid, to distinguish an option from a part of the same name."""
        try:
            self.read([value])
        except InvalidOption:
            return False
        return True


def option_rows(table: type[RequestOptions]) -> tuple[Option, ...]:
    """Return the rows of a table, in its order."""
    hints = typing.get_type_hints(table, include_extras=True)
    return tuple(_row(field, hints[field.name]) for field in msgspec.structs.fields(table))


def _row(field: msgspec.structs.FieldInfo, hint: Any) -> Option:
    kind, meta = _unwrap_optional(hint)
    extra = meta.extra or {}
    about = _plain(type_info(kind))
    repeated = isinstance(about, msgspec.inspect.ListType)
    default = None if field.default is NODEFAULT else field.default
    (schema,), _ = msgspec.json.schema_components([kind])
    choices = [str(choice) for choice in _choices(kind)]
    if choices:
        schema["enum"] = _choices(kind)
    return Option(
        name=field.name,
        description=meta.description or "",
        values=extra.get("values") or (", ".join(f"`{choice}`" for choice in choices) if choices else _words(about)),
        words=extra.get("words") or (f"one of {', '.join(choices)}" if choices else _words(about)),
        default=extra.get("default") or ("" if default is None else _text(default)),
        repeated=repeated,
        schema={**schema, "description": meta.description or ""} | ({} if default is None else {"default": default}),
        kind=kind,
    )


def _unwrap_optional(hint: Any) -> tuple[Any, Meta]:
    """Return the type without None, and its metadata."""
    meta = Meta()
    if typing.get_origin(hint) is Annotated:
        hint, meta = hint.__origin__, hint.__metadata__[0]
        inner, _ = _unwrap_optional(hint)
        return Annotated[inner, meta], meta
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = tuple(member for member in typing.get_args(hint) if member is not type(None))
        if len(members) == 1:
            return _unwrap_optional(members[0])
        return functools.reduce(operator.or_, members), meta
    return hint, meta


def _plain(about: Type) -> Type:
    return about.type if isinstance(about, msgspec.inspect.Metadata) else about


def _choices(kind: Any) -> list[str | int]:
    """Return the choices in their order, which msgspec does not keep; empty if the type has none."""
    bare = kind.__origin__ if typing.get_origin(kind) is Annotated else kind
    return list(typing.get_args(bare)) if typing.get_origin(bare) is Literal else []


def _words(about: Type) -> str:
    match _plain(about):
        case BoolType():
            return "true or false"
        case IntType(ge=1, le=None):
            return "a positive integer"
        case IntType(ge=low, le=high):
            return "an integer" + _range(low, high)
        case FloatType(gt=above, ge=low, le=high):
            return "a number" + (f" above {above:g}" if above is not None else "") + _range(low, high)
        case StrType(max_length=longest):
            return "text" + (f" of at most {longest} characters" if longest else "")
        case msgspec.inspect.ListType(item_type=item, max_length=most):
            return (f"at most {most} times " if most else "any number of times ") + _words(item)
        case UnionType(types=members):
            return " or ".join(_words(member) for member in members)
    raise TypeError(f"an option of the type {about} has no words: give it `values`")


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "" if high is None else f" of at most {high}"
    return f" of at least {low}" if high is None else f" from {low} to {high}"


def _text(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


MERGED = int | Annotated[str, Meta(max_length=256)]
VALUES = "`off`, tokens to merge in each block (an integer), or a rung of the bundle's ladder"


def schedule_of(merge: str | None, spec: BundleSpec, option: str = "merge") -> tuple[str | None, tuple[int, ...]]:
    """Return the rung, if it names one, and r of every block. merge: `off`, an integer of at least 0 or a rung's name; None: the bundle's
    default rung, or off. option: its name. Raises InvalidOption."""
    depth = int(spec.config.get("depth", 1))
    name = spec.default_rung if merge is None else merge
    if name is None or name in ("off", "0"):
        return None, (0,) * depth
    if not spec.merges:
        raise InvalidOption(option, f"{quote(name)}: the tokens of {spec.id} do not merge; use `off`")
    rung = spec.rung(name)
    if rung is not None:
        return rung.name, _expand_schedule(rung.merge, depth)
    if name.isascii() and name.isdigit() and len(name) <= 5 and int(name) <= MAX_MERGED_TOKENS:
        return None, MergeSchedule.constant(int(name)).expand(depth)
    rungs = ", ".join(rung.name for rung in spec.ladder) or "none"
    raise InvalidOption(option, f"{quote(name)}: use `off`, an integer from 0 to {MAX_MERGED_TOKENS} or a rung of {spec.id} ({rungs})")


def schedules_of(
    merge: str | None, merge_sight: str | None, spec: BundleSpec
) -> tuple[str | None, tuple[int, ...], tuple[int, ...] | None]:
    """Return the rung, if both halves of a network use one, r of every block, and r of every block of the half that sees.

    The last is None without a schedule of its own. merge, merge_sight: as for `schedule_of`; merge_sight None: as `merge`. Raises
    InvalidOption."""
    rung, schedule = schedule_of(merge, spec)
    if merge_sight is None:
        return rung, schedule, _sight_schedule(rung, spec)
    named, sight = schedule_of(merge_sight, spec, "merge_sight")
    return rung if rung == named else None, schedule, _sight_schedule(named, spec) or sight


def _sight_schedule(rung: str | None, spec: BundleSpec) -> tuple[int, ...] | None:
    """Return a rung's own schedule for the half that sees."""
    found = None if rung is None else spec.rung(rung)
    merge = None if found is None else found.merge_sight
    return None if merge is None else _expand_schedule(merge, int(spec.config.get("depth", 1)))


def _expand_schedule(merge: MergeSchedule, depth: int) -> tuple[int, ...]:
    return tuple(max(r, 0) for r in merge.expand(depth))
