"""Seconds of a bundle's batches by merge schedule, backend and size, and what follows from them: what runs a batch. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

Backend = Literal["eager", "fused", "onnx", "int8"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

Schedule = tuple[int, ...]
"""Tokens that really merge in each block."""

NEEDED: Mapping[Backend, float] = {"eager": 1.0, "fused": 1.02, "onnx": 1.05, "int8": 1.3}
"""A backend must be so many times as fast as eager at a size to run it: the rest is noise or, for int8, not worth its accuracy."""
MERGING_SHARE = 0.9
"""Merging is left out of a batch where that takes at most this share of the seconds."""


Usable = Callable[[Schedule], Sequence[Backend]]
"""The backends that may run a schedule."""


class Choice(NamedTuple):
    """The way in which a batch is run."""

    backend: Backend
    schedule: Schedule


class BackendTimes:
    """Sizes are powers of two; a size between two of them is decided as both are, or by eager and as asked."""

    def __init__(self, seconds: Mapping[Schedule, Mapping[Backend, Mapping[int, float]]] | None = None) -> None:
        self._seconds: dict[Schedule, dict[Backend, dict[int, float]]] = {
            schedule: {backend: dict(sizes) for backend, sizes in backends.items()} for schedule, backends in (seconds or {}).items()
        }

    def record(self, schedule: Schedule, backend: Backend, size: int, seconds: float) -> None:
        self._seconds.setdefault(schedule, {}).setdefault(backend, {})[size] = seconds

    def seconds(self, schedule: Schedule, backend: Backend, size: int) -> float | None:
        return self._seconds.get(schedule, {}).get(backend, {}).get(size)

    def choose(self, schedule: Schedule, size: int, usable: Usable, *, skippable: bool = False) -> Choice:
        """The fastest way to run a batch. skippable: whether it may run without merging."""
        below = 1 << (size.bit_length() - 1)
        sizes = {below} if below == size else {below, 2 * below}
        choices = {self._at(schedule, size, usable, skippable) for size in sizes}
        return choices.pop() if len(choices) == 1 else Choice("eager", schedule)

    def best(self, schedule: Schedule, usable: Usable) -> dict[int, float]:
        """Seconds by size, each with the backend that would run it."""
        sizes = sorted({size for sizes in self._seconds.get(schedule, {}).values() for size in sizes})
        return {size: seconds for size in sizes if (seconds := self._of(schedule, size, usable)[1]) is not None}

    def chosen(self, usable: Usable) -> set[Backend]:
        """All backends that run something."""
        return {
            self._of(schedule, size, usable)[0]
            for schedule, backends in self._seconds.items()
            for sizes in backends.values()
            for size in sizes
        }

    def to_json(self) -> dict[str, dict[Backend, dict[int, float]]]:
        return {",".join(map(str, schedule)): backends for schedule, backends in self._seconds.items()}

    @staticmethod
    def from_json(seconds: Mapping[str, Mapping[Backend, Mapping[int, float]]]) -> BackendTimes:
        """Raises ValueError for keys that are no schedules."""
        return BackendTimes({tuple(int(r) for r in key.split(",") if r): backends for key, backends in seconds.items()})

    def _at(self, schedule: Schedule, size: int, usable: Usable, skippable: bool) -> Choice:
        backend, seconds = self._of(schedule, size, usable)
        off = (0,) * len(schedule)
        if skippable and schedule != off and seconds is not None:
            plain, plain_seconds = self._of(off, size, usable)
            if plain_seconds is not None and plain_seconds <= MERGING_SHARE * seconds:
                return Choice(plain, off)
        return Choice(backend, schedule)

    def _of(self, schedule: Schedule, size: int, usable: Usable) -> tuple[Backend, float | None]:
        """The backend for a schedule and its seconds. One that was never measured, and so has none, runs as all others of its size do, or
        by eager."""
        measured = self._seconds.get(schedule, {})
        eager = measured.get("eager", {}).get(size)
        if eager is None:
            known = (other for other, backends in self._seconds.items() if size in backends.get("eager", {}))
            others = {self._of(other, size, lambda _: usable(schedule))[0] for other in known}
            return others.pop() if len(others) == 1 else "eager", None
        times = {backend: measured[backend][size] for backend in usable(schedule) if size in measured.get(backend, {})}
        fast = {backend: seconds for backend, seconds in times.items() if eager >= NEEDED[backend] * seconds}
        if not fast:
            return "eager", eager
        backend = min(fast, key=fast.__getitem__)
        return backend, fast[backend]
