"""The option `merge`, which several tasks have: a schedule of token merging by name or number."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from models.bundle import BundleSpec
from models.merge_schedule import MergeSchedule
from server.quoting import quoted
from server.tasks.options import InvalidOption

MAX_MERGED = 65_536
"""An r beyond this merges no more than this one: no block has that many tokens."""
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
        raise InvalidOption(option, f"{quoted(name)}: the tokens of {spec.id} do not merge; use `off`")
    rung = spec.rung(name)
    if rung is not None:
        return rung.name, tuple(max(r, 0) for r in rung.merge.expand(depth))
    if name.isascii() and name.isdigit() and len(name) <= 5 and int(name) <= MAX_MERGED:
        return None, MergeSchedule.constant(int(name)).expand(depth)
    rungs = ", ".join(rung.name for rung in spec.ladder) or "none"
    raise InvalidOption(option, f"{quoted(name)}: use `off`, an integer from 0 to {MAX_MERGED} or a rung of {spec.id} ({rungs})")
