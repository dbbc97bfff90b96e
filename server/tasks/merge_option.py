"""The option `merge`, which several tasks have: a schedule of token merging by name or number."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from models.bundle import BundleSpec
from models.merge_schedule import MAX_MERGED_TOKENS, MergeSchedule
from server.quote import quote
from server.tasks.options import InvalidOption

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
