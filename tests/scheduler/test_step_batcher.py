"""How jobs of several steps take turns, on a clock of the test's own."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest

from server.queue.worker.delivery import Delivery
from server.scheduler.batcher import Bucket, StepTimes
from server.scheduler.step_batcher import LONG_WORK_SHARE, MAX_LAG_S, MAX_RESIDENT_BUDGETS, MAX_YIELDED_STEPS, LongWorkShare, StepBatcher
from tests.support.queue import delivery

LONG = "long@1"
STEP = 0.1
"""Duration of a step in seconds, whatever its size."""
BUDGET = 4


class Jobs:
    """The executor of the long bundle: steps left and weights by job, bytes of a state, seconds of a start."""

    def __init__(self, state_bytes: int = 0, start_seconds: float = 0.0) -> None:
        self.state_bytes = state_bytes
        self.start_seconds = start_seconds
        self.left: dict[str, int] = {}
        self.weights: dict[str, float] = {}

    @property
    def residents(self) -> dict[str, int]:
        return self.left

    @property
    def nbytes(self) -> int:
        return len(self.left) * self.state_bytes

    def weight(self, job: Delivery) -> float:
        return self.weights.get(job.job.id, 1.0)

    def remaining(self, job: Delivery) -> int | None:
        return self.left.get(job.job.id)


class Device:
    """One or more slots that take the steps that are next. Each is written down as (start, jobs)."""

    def __init__(self, jobs: Jobs | None = None, slots: int = 1) -> None:
        self.jobs = jobs or Jobs()
        self.slots = slots
        self.now = 0.0
        self.ran: list[tuple[float, list[Delivery]]] = []
        self.totals: dict[str, int] = {}
        self.ended: set[str] = set()
        """Ids of long jobs."""
        self.times: StepTimes | None = None
        """Step times of all buckets; None if each step takes STEP."""
        queue = Bucket.from_delivery(delivery(bundle=LONG)).queue
        self.queue = queue
        self.long = StepBatcher(self._times, lambda: {queue: self.jobs})

    def long_job(self, steps: int, **of_delivery: object) -> Delivery:
        made = delivery(bundle=LONG, **{"queued_at": self.now, **of_delivery})
        self.totals[made.job.id] = steps
        self.long.add(made)
        return made

    def run(self) -> list[Delivery]:
        """Run the next step to its end, in a worker with one slot. Return its jobs, [] if there is none."""
        batch = self.long.next(slots=self.slots)
        if not batch:
            return []
        self.ran.append((self.now, batch))
        self.now += STEP + self.jobs.start_seconds * sum(job.job.id not in self.jobs.left for job in batch)
        for job in batch:
            self.jobs.left[job.job.id] = self.jobs.left.get(job.job.id, self.totals[job.job.id]) - 1
        self.ended |= {id_ for id_, left in self.jobs.left.items() if not left}
        unfinished = [job for job in batch if self.jobs.left[job.job.id]]
        self.jobs.left = {id_: left for id_, left in self.jobs.left.items() if left}
        self.long.finish_step(Bucket.from_delivery(batch[0]), len(batch), unfinished, self.now)
        return batch

    def _times(self, bucket: Bucket) -> StepTimes:
        if self.times is not None:
            return self.times
        steps = StepTimes(BUDGET)
        for size in (1, 2, 4):
            steps.record(size, STEP)
        return steps


def test_members_with_oldest_step_go_first_and_all_advance() -> None:
    device = Device()
    jobs = [device.long_job(60) for _ in range(6)]
    assert [device.run() for _ in range(5)] == [
        jobs[:4],
        [*jobs[4:], *jobs[:2]],
        [*jobs[2:4], *jobs[4:]],
        [*jobs[:2], *jobs[2:4]],
        [*jobs[4:], *jobs[:2]],
    ]


def test_short_job_ends_soon_among_long_ones_without_delay() -> None:
    device = Device()
    long = [device.long_job(1000) for _ in range(8 * BUDGET)]
    while len(device.jobs.left) < len(long):
        device.run()
    came = device.now
    short = device.long_job(5)
    while short.job.id not in device.ended:
        device.run()
    in_turn = 5 * len(long) / BUDGET * STEP
    assert device.now - came < in_turn / 2


@pytest.mark.parametrize("bucket", ["a", "b"])
@pytest.mark.parametrize("queued", [0.0, 30.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_long_job_takes_its_steps_however_many_short_ones_come(steps: int, queued: float, bucket: str) -> None:
    device = Device()
    long = device.long_job(10_000)
    for _ in range(500):
        while len(device.long) < 3 * BUDGET:
            device.long_job(steps, queued_at=device.now - queued, pulled_at=device.now, bucket=bucket)
        device.run()
    taken = [start for start, batch in device.ran if long in batch]
    waits = [later - sooner for sooner, later in pairwise(taken)]
    assert max(waits) <= (MAX_YIELDED_STEPS + 3 + 1) * STEP + 1e-9  # others' turns, and those it lets go first


class TestStarting:
    def test_few_start_in_one_step_so_that_it_is_not_much_longer(self) -> None:
        device = Device(Jobs(start_seconds=STEP / 2))
        for _ in range(4 * BUDGET):
            device.long_job(100)
        while len(device.jobs.left) < 4 * BUDGET:
            device.run()
        turns = [later - sooner for sooner, later in pairwise([start for start, _ in device.ran])]
        assert max(turns) <= STEP + STEP / 2 + 1e-9

    def test_one_that_takes_longer_than_a_step_starts_by_itself(self) -> None:
        device = Device(Jobs(start_seconds=10 * STEP))
        first = [device.long_job(100) for _ in range(3)]
        others = [device.long_job(100) for _ in range(3)]
        batches = [device.run() for _ in range(8)]
        assert batches[:6] == [[job] for job in [*first, *others]]
        assert batches[6] == first + others[:1]


def test_a_new_job_joins_at_the_next_step() -> None:
    device = Device()
    first = [device.long_job(5) for _ in range(4)]
    device.run()
    newcomer = device.long_job(5, queued_at=device.now - STEP / 2)
    assert device.run() == [newcomer, *first[:3]]


def test_low_long_job_is_not_starved_by_other_bucket() -> None:
    device = Device()
    low = device.long_job(3, priority="low", bucket="b")
    for _ in range(4):
        device.long_job(100_000, priority="high")
    steps = [start for start, batch in (device.ran if [device.run() for _ in range(400)] else []) if low in batch]
    assert len(steps) == 3


def test_buckets_of_equal_priority_alternate() -> None:
    device = Device()
    for bucket in "abab":
        device.long_job(4, bucket=bucket)
    assert [device.run()[0].job.bucket for _ in range(6)] == list("ababab")


def test_a_batch_is_bounded_by_cost_where_steps_differ() -> None:
    device = Device()
    jobs = [device.long_job(2) for _ in range(4)]
    device.jobs.weights = {jobs[0].job.id: 3.0, jobs[1].job.id: 0.5, jobs[2].job.id: 0.5, jobs[3].job.id: 1.0}
    assert device.run() == jobs[:3]


def test_unfit_job_is_skipped_and_goes_first_in_the_end() -> None:
    device = Device()
    heavy = device.long_job(100)
    light = [device.long_job(100) for _ in range(6)]
    device.jobs.weights = {heavy.job.id: 3.5, **{job.job.id: 0.75 for job in light}}
    batches = [device.run() for _ in range(20)]
    assert all(sum(device.jobs.weight(job) for job in batch) <= BUDGET for batch in batches)
    taken = [number for number, batch in enumerate(batches) if heavy in batch]
    assert max(later - sooner for sooner, later in pairwise(taken)) <= 3
    assert min(len(batch) for batch in batches if heavy not in batch) == 5


def test_jobs_that_wait_for_their_frames_keep_no_other_out() -> None:
    device = Device()
    jobs = [device.long_job(2) for _ in range(BUDGET + 2)]
    device.jobs.weights = {job.job.id: 0.01 for job in jobs[:2]}
    assert device.run() == jobs


def test_two_slots_share_a_bucket() -> None:
    device = Device(slots=2)
    jobs = [device.long_job(5) for _ in range(6)]
    first = device.long.next(slots=2)
    second = device.long.next(slots=2)
    assert (first, second) == (jobs[:3], jobs[3:])


class TestAlone:
    def test_its_turn_is_known(self) -> None:
        device = Device()
        device.long_job(3)
        assert device.long.exclusive_urgency == inf
        suspect = device.long_job(3, alone=True, queued_at=-1.0, pulled_at=-1.0)
        assert device.long.exclusive_urgency == suspect.due

    def test_suspect_takes_steps_alone_and_others_alternate(self) -> None:
        device = Device()
        others = [device.long_job(3) for _ in range(2)]
        suspect = device.long_job(3, alone=True)
        batches = [device.run() for _ in range(6)]
        assert batches == [others, [suspect]] * 3

    def test_their_number_is_known(self) -> None:
        device = Device()
        for _ in range(3):
            device.long_job(3, alone=True)
        assert device.long.next(slots=1) and device.long.exclusive_count == 3


class TestCapacity:
    def test_is_one_budget_at_a_time_and_a_few_in_all(self) -> None:
        device = Device()
        capacities = []
        for _ in range(MAX_RESIDENT_BUDGETS + 1):
            capacities.append(device.long.capacities(1, 0)[device.queue])
            for _ in range(capacities[-1]):
                device.long_job(100)
            device.run()
        assert capacities == [BUDGET] * MAX_RESIDENT_BUDGETS + [0]

    def test_is_bounded_by_the_bytes_of_states(self) -> None:
        device = Device(Jobs(state_bytes=100))
        assert device.long.capacities(1, 250)[device.queue] == 2
        for _ in range(2):
            device.long_job(100)
        assert device.long.capacities(1, 250)[device.queue] == 0
        device.run()
        assert device.long.capacities(1, 399)[device.queue] == 1

    def test_an_empty_worker_takes_one_job_however_large(self) -> None:
        assert list(Device(Jobs(state_bytes=1000)).long.capacities(1, 10).values()) == [1]


class TestDraining:
    def test_finishable_jobs_stay_and_others_leave(self) -> None:
        device = Device()
        short, long, unstarted = device.long_job(5), device.long_job(500), device.long_job(5)
        device.jobs.left = {short.job.id: 5, long.job.id: 500}
        leaving = device.long.take_unfinishable(device.now, until=device.now + 10 * STEP, slots=1)
        assert set(map(id, leaving)) == {id(long), id(unstarted)}
        assert device.run() == [short]

    def test_who_shares_the_device_takes_longer(self) -> None:
        device = Device()
        jobs = [device.long_job(6, bucket=str(number)) for number in range(4)]
        device.jobs.left = {job.job.id: 6 for job in jobs}
        assert device.long.take_unfinishable(device.now, until=device.now + 13 * STEP, slots=1) == jobs[2:]
        assert len(device.long) == 2


@pytest.mark.parametrize("slots", [1, 2])
def test_its_share_is_a_quarter_of_the_device_over_some_time(slots: int) -> None:
    share, now, had, owed = LongWorkShare(slots), 0.0, 0.0, 0
    for _ in range(2000):
        now += STEP
        if share.is_behind(now, present=True):
            share.record_step(STEP)
            had, owed = had + STEP, owed + 1
    assert had / slots / now == pytest.approx(LONG_WORK_SHARE, abs=0.02)
    assert not share.is_behind(now + 100, present=False)
    assert not share.is_behind(now + 101, present=True), "nothing is owed for a time without long work"
    assert not share.is_behind(now + 101 + MAX_LAG_S / LONG_WORK_SHARE / slots, present=True)
    assert share.is_behind(now + 101 + 1.1 * MAX_LAG_S / LONG_WORK_SHARE / slots, present=True)
