"""Which arm runs a batch, learned from the batches that are served. Pure: no clock, no thread, no chance.

Two decisions are made for each rung. Its *kind* is settled once, over all batch sizes: each arm is tried on a few batches, and is compared
with the leader at the sizes that both have run. After that only arms of this kind run, which answer alike, and each size class finds the
fastest of them. Trials are paid from a credit: what they take beyond the leader's time is at most 2 % of all batch seconds, and one batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from statistics import median
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

Backend = Literal["eager", "fused", "onnx", "int8"]
"""The names that operators read and set."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)
BackendSetting = Literal["auto", "eager", "fused", "onnx", "int8"]

Arm = Literal["eager", "fused", "onnx", "bfloat16", "float16", "int8"]
"""A backend with a number format: `eager` and `fused` have the format in which the bundle was loaded, `bfloat16` and
`float16` are `eager` in these."""

Format = Literal["float32", "bfloat16", "float16"]
"""Number formats of PyTorch."""
Kind = Literal["float32", "graph", "bfloat16", "float16", "int8"]
"""Arms of one kind give the same answers. `graph` is ONNX Runtime in float32 if tokens merge: of two that are almost equally similar it may
merge the other one."""

Schedule = tuple[int, ...]
"""Number of tokens that merge in each block."""

HANDICAPS: Mapping[Arm, float] = {"eager": 1.0, "fused": 1.02, "onnx": 1.05, "bfloat16": 1.11, "float16": 1.11, "int8": 1.3}
"""Factor by which an arm's seconds are multiplied before they are compared: a gain below it is noise, or is not worth the accuracy."""
USUAL_ORDER: Sequence[Arm] = ("int8", "bfloat16", "float16", "onnx", "fused", "eager")
"""Arms in the order of their usual gain on a CPU. A GPU has `eager` and its 16-bit format alone."""


def kind_of(arm: Arm, schedule: Schedule, loaded: Format = "float32") -> Kind:
    """Return the kind of an arm's answers. loaded: format of `eager` and `fused`."""
    return "graph" if arm == "onnx" and (any(schedule) or loaded != "float32") else format_of(arm, loaded)


def backend_of(arm: Arm) -> Backend:
    """Return the backend that an arm is reported as."""
    return next((backend for backend in BACKENDS if backend == arm), "eager")


def format_of(arm: Arm, loaded: Format) -> Format | Literal["int8"]:
    """Return the number format of an arm's matrices."""
    match arm:
        case "onnx":
            return "float32"
        case "eager" | "fused":
            return loaded
    return arm


MIN_PLAYS = 2
"""Batches after which an arm may be judged, and which the leader must have run before a trial is compared with it."""
MAX_PLAYS = 5
"""Batches after which it is judged."""
MAX_TIMES = 9
"""Number of the latest batches whose median counts."""
EARLY_WIN = 0.8
"""Share of the leader's score at which an arm wins after `MIN_PLAYS`."""
TRIAL_SHARE = 0.02
"""Share of all batch seconds that trials may cost."""
MAX_CREDIT_S = 5.0
"""Maximum credit, in seconds."""
RETRY_BATCHES = 200
"""Batches until an arm that lost once is tried again; twice as many after each further loss."""
MAX_DOUBLINGS = 4
SLOWDOWN = 1.25
"""Factor by which a leader must have slowed down for the others to be tried again at once."""
MAX_ITEM_S = 3600.0
"""Maximum credible time per item, in seconds."""

ItemSeconds = Annotated[float, Meta(gt=0, lt=MAX_ITEM_S)]


class LearnedRung(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rung whose kind is settled, as it is stored."""

    kind: Kind
    leader: Arm
    leaders: dict[Annotated[int, Meta(ge=1, le=32)], Arm]
    """Fastest arm by size class."""
    seconds: dict[Annotated[int, Meta(ge=1, le=32)], dict[Arm, ItemSeconds]]
    """Time per item in seconds, by size class and arm."""


class Turn(NamedTuple):
    """The way in which a batch is run."""

    arm: Arm
    is_trial: bool = False


class _SizeRace:
    """The arms of a rung at batch sizes of the same bit length."""

    def __init__(self, leader: Arm) -> None:
        self.leader: Arm = leader
        self.times: dict[Arm, deque[float]] = {}
        """Times per item of the latest warm batches, in seconds."""
        self.retry_at: dict[Arm, float] = {}
        """Number of the batch from which an arm that lost may be tried again."""
        self.losses: Counter[Arm] = Counter()
        self.fastest = inf
        """Least time per item of the leader, in seconds."""
        self.batches = 0
        self.rested = True
        """Whether the latest batch was not a trial: a trial never follows a trial, so that both feel the same machine."""

    def plays(self, arm: Arm) -> int:
        return len(self.times.get(arm, ()))

    def median(self, arm: Arm) -> float:
        return median(self.times[arm])

    def is_open(self, arm: Arm) -> bool:
        """Return whether an arm is still to be judged, or is to be tried again."""
        if self.batches < self.retry_at.get(arm, 0):
            return False
        if self.retry_at.pop(arm, None) is not None:
            self.times.pop(arm, None)
        return self.plays(arm) < MAX_PLAYS

    def update(self, arm: Arm, alike: Collection[Arm]) -> None:
        """Compare an arm that has run a batch with the leader, or the leader with the others. alike: the arms of the rung's kind."""
        if arm != self.leader:
            self._compare(arm)
            return
        for other in alike:
            if other not in self.retry_at and other != self.leader:
                self._compare(other)
        median_s = self.median(self.leader) if self.plays(self.leader) else inf
        self.fastest = min(self.fastest, median_s)
        if median_s > SLOWDOWN * self.fastest:
            self.fastest = median_s
            self.retry_at |= {other: 0 for other in self.retry_at if other in alike}

    def _compare(self, arm: Arm) -> None:
        if self.plays(arm) < MIN_PLAYS or not self.plays(self.leader):
            return
        has_won = _beats(self.plays(arm), *_scores([self.times], arm, self.leader))
        if has_won is None:
            return
        loser = arm
        if has_won:
            loser, self.leader, self.fastest = self.leader, arm, inf
        self.losses[loser] += 1
        self.retry_at[loser] = self.batches + RETRY_BATCHES * 2 ** min(self.losses[loser], MAX_DOUBLINGS)


class _Rung:
    """A schedule that the bundle's ladder has, or merging off."""

    def __init__(self, schedule: Schedule, arms: Iterable[Arm], loaded: Format) -> None:
        self.arms = set(arms)
        """Arms that may run it, open or not."""
        self.leader: Arm = "eager"
        self.kind: Kind | None = None
        """None until it is settled."""
        self.judged: set[Arm] = set()
        self.sizes: dict[int, _SizeRace] = {}
        self._kinds: Mapping[Arm, Kind] = {arm: kind_of(arm, schedule, loaded) for arm in HANDICAPS}

    def size(self, size_class: int) -> _SizeRace:
        return self.sizes.setdefault(size_class, _SizeRace(self.leader))

    def leader_at(self, size_class: int) -> Arm:
        return self.leader if self.kind is None or size_class not in self.sizes else self.sizes[size_class].leader

    @property
    def alike(self) -> set[Arm]:
        return {arm for arm in self.arms if self._kinds[arm] == self.kind}

    def open(self, size_class: int, usable: Collection[Arm]) -> list[Arm]:
        """Return the arms to be tried."""
        leader = self.leader_at(size_class)
        if self.kind is None:
            return [arm for arm in usable if arm != leader and arm in self.arms and arm not in self.judged]
        race = self.size(size_class)
        return [arm for arm in self.alike.intersection(usable) if arm != leader and race.is_open(arm)]

    def update(self, arm: Arm, size_class: int) -> bool:
        """Compare an arm that has run a warm batch with the leader. Return whether the leader has changed."""
        before = self.leader_at(size_class)
        if self.kind is not None:
            self.sizes[size_class].update(arm, self.alike)
        elif arm != self.leader and arm not in self.judged:
            plays = sum(race.plays(arm) for race in self.sizes.values())
            scores = _scores([race.times for race in self.sizes.values()], arm, self.leader, list(self.sizes))
            if plays >= MIN_PLAYS and scores[1] and (verdict := _beats(plays, *scores)) is not None:
                self.judged |= {arm, self.leader}
                self.leader = arm if verdict else self.leader
            self.settle()
        return self.leader_at(size_class) != before

    def drop(self, arm: Arm) -> None:
        """Do without an arm that cannot be opened or has failed."""
        self.arms.discard(arm)
        if self.leader == arm:
            self.leader = "eager"
            self.judged.clear()
        for race in self.sizes.values():
            if race.leader == arm:
                race.leader, race.fastest = self.leader, inf
            race.times.pop(arm, None)
        self.settle()

    def settle(self) -> None:
        """Settle the kind, if no arm is left to be judged."""
        if self.kind is None and not self.arms - self.judged - {self.leader}:
            self.kind = self._kinds[self.leader]
            for race in self.sizes.values():
                race.leader = self.leader

    def snapshot(self) -> LearnedRung | None:
        if self.kind is None or self._kinds[self.leader] != self.kind:
            return None
        played = {size_class: race for size_class, race in self.sizes.items() if race.plays(race.leader)}
        leaders = {size_class: race.leader for size_class, race in played.items()}
        seconds = {size_class: {arm: race.median(arm) for arm in self.alike if race.plays(arm)} for size_class, race in played.items()}
        return LearnedRung(self.kind, self.leader, leaders, seconds)

    def restore(self, learned: LearnedRung) -> None:
        """Go on from what was learned before; what names other arms or kinds is not this rung's and is ignored."""
        if not {learned.leader, *learned.leaders.values()} <= self.arms or self._kinds[learned.leader] != learned.kind:
            return
        self.leader, self.kind = learned.leader, learned.kind
        for size_class, leader in learned.leaders.items():
            race = self.size(size_class)
            race.leader = leader if leader in self.alike else self.leader
            for arm, seconds in learned.seconds.get(size_class, {}).items():
                race.times[arm] = deque([seconds] * MAX_PLAYS, MAX_TIMES)
                if arm != leader:
                    race.losses[arm], race.retry_at[arm] = 1, 2 * RETRY_BATCHES


class Learner:
    """The arms of one bundle's rungs, and of merging off."""

    def __init__(self, arms: Mapping[Schedule, Iterable[Arm]], loaded: Format = "float32") -> None:
        """Create a learner of a bundle that runs by `eager`. arms: the arms that may run each rung, open or not; loaded: format of
        `eager`."""
        self._rungs = {schedule: _Rung(schedule, allowed, loaded) for schedule, allowed in arms.items()}
        self.credit = 0.0
        """Time that trials may cost now, in seconds."""
        self.version = 0
        """A number that grows when there is something new to be kept."""
        for rung in self._rungs.values():
            rung.settle()

    def choose(self, schedule: Schedule, size: int, usable: Collection[Arm]) -> Turn:
        """Choose the arm of a batch. usable: the arms that are open and may run it."""
        rung, size_class = self._rungs.get(schedule), size.bit_length()
        if rung is None:
            return Turn(self._common(size_class, usable))
        race, leader = rung.size(size_class), rung.leader_at(size_class)
        if leader not in usable:
            return Turn("eager")
        due = rung.open(size_class, usable) if race.rested and self.credit > 0 and race.plays(leader) >= MIN_PLAYS else []
        race.rested = not due
        return Turn(min(due, key=USUAL_ORDER.index), is_trial=True) if due else Turn(leader)

    def observe(self, schedule: Schedule, turn: Turn, size: int, seconds: float, *, is_cold: bool) -> bool:
        """Learn from a batch. is_cold: whether it also paid for preparing its shape. Return whether the size has a new leader."""
        self.credit = min(MAX_CREDIT_S, self.credit + TRIAL_SHARE * seconds)
        rung, size_class = self._rungs.get(schedule), size.bit_length()
        if rung is None:
            return False
        race = rung.size(size_class)
        if turn.is_trial and (leader := rung.leader_at(size_class)) in race.times:
            self.credit -= max(0.0, seconds - size * race.median(leader))
        race.batches += 1
        if is_cold or turn.arm not in rung.arms:
            return False
        kind, plays = rung.kind, race.plays(turn.arm)
        race.times.setdefault(turn.arm, deque(maxlen=MAX_TIMES)).append(seconds / size)
        has_new_leader = rung.update(turn.arm, size_class)
        self.version += has_new_leader or rung.kind != kind or plays + 1 == MIN_PLAYS
        return has_new_leader

    def drop(self, arm: Arm) -> None:
        """Do without an arm that cannot be opened or has failed."""
        for rung in self._rungs.values():
            rung.drop(arm)
        self.version += 1

    def leader(self, schedule: Schedule, size: int) -> Arm:
        """Return the arm that runs batches of a size, whether it is open or not."""
        rung = self._rungs.get(schedule)
        return self._common(size.bit_length(), HANDICAPS) if rung is None else rung.leader_at(size.bit_length())

    def seconds(self, schedule: Schedule) -> dict[int, float]:
        """Return the seconds of a batch by size, in powers of two."""
        races = self._rungs[schedule].sizes if schedule in self._rungs else {}
        sizes = {1 << (size_class - 1): race for size_class, race in sorted(races.items())}
        return {size: size * race.median(race.leader) for size, race in sizes.items() if race.plays(race.leader)}

    @property
    def needed(self) -> set[Arm]:
        """The arms that run something, or may do so before everything is settled."""
        arms: set[Arm] = {"eager"}
        for rung in self._rungs.values():
            arms |= rung.alike if rung.kind is not None else rung.arms
        return arms

    @property
    def settled(self) -> set[Arm]:
        """The arms of the kinds that are settled, fastest of their rung."""
        return {arm for rung in self._rungs.values() if rung.kind is not None for arm in (rung.leader, *map(rung.leader_at, rung.sizes))}

    def snapshot(self) -> dict[str, LearnedRung]:
        """Return what is to be kept, by schedule."""
        found = {",".join(map(str, schedule)): rung.snapshot() for schedule, rung in self._rungs.items()}
        return {name: rung for name, rung in found.items() if rung is not None}

    def restore(self, learned: Mapping[str, LearnedRung]) -> None:
        """Go on from what was kept."""
        for schedule, rung in self._rungs.items():
            if (found := learned.get(",".join(map(str, schedule)))) is not None:
                rung.restore(found)

    def _common(self, size_class: int, usable: Collection[Arm]) -> Arm:
        """Return the arm of a schedule that a client made up: the one of all rungs if they are of one kind and agree, else `eager`."""
        kinds = {rung.kind for rung in self._rungs.values()}
        leaders = {rung.leader_at(size_class) for rung in self._rungs.values()}
        arm = leaders.pop() if len(leaders) == len(kinds) == 1 and None not in kinds else "eager"
        return arm if arm in usable else "eager"


def _scores(
    times: Sequence[Mapping[Arm, deque[float]]], arm: Arm, leader: Arm, size_classes: Sequence[int] = (1,)
) -> tuple[float, float, float]:
    """Return an arm's score, the leader's, and the score of the arm's fastest batches, over the sizes that both have run."""
    score = mark = best = 0.0
    for size_class, seconds in zip(size_classes, times, strict=True):
        if seconds.get(arm) and seconds.get(leader):
            size = 1 << (size_class - 1)
            score += size * HANDICAPS[arm] * median(seconds[arm])
            best += size * HANDICAPS[arm] * min(seconds[arm])
            mark += size * HANDICAPS[leader] * median(seconds[leader])
    return score, mark, best


def _beats(plays: int, score: float, mark: float, best: float) -> bool | None:
    """Return whether an arm beats the leader; None if that is open. score, mark, best: as `_scores` returns."""
    if best > mark:
        return False
    if score <= EARLY_WIN * mark:
        return True
    return None if plays < MAX_PLAYS else score < mark
