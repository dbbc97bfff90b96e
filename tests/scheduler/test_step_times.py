"""The batch size is learned from step times."""

from __future__ import annotations

import pytest

from server.scheduler.batcher import NEAR_BEST_SHARE_STEPS, RECHECK_EVERY_BATCHES, REGROW_AFTER_BATCHES, WINDOW, StepTimes


def step_times(seconds: dict[int, float], largest: int = 32) -> StepTimes:
    steps = StepTimes(largest)
    for size, time in seconds.items():
        steps.record(size, time)
    return steps


def test_the_throughput_peak_wins_over_the_largest_batch() -> None:
    steps = step_times({1: 0.030, 2: 0.050, 4: 0.080, 8: 0.150, 16: 0.400})
    assert steps.best == 8
    assert steps.items_per_second == pytest.approx(8 / 0.150)


def test_smaller_of_two_sizes_with_equal_throughput_is_taken() -> None:
    assert step_times({4: 0.100, 8: 0.199}).best == 4


def test_steps_are_content_with_less_than_short_jobs() -> None:
    taken = {8: 0.100, 16: 0.196, 32: 0.390}  # the larger, the faster: by 2 % and by half a percent
    assert step_times(taken).best == 8
    steps = StepTimes(32, NEAR_BEST_SHARE_STEPS)
    for size, seconds in taken.items():
        steps.record(size, seconds)
    assert steps.best == steps.copy().best == 16


def test_model_with_constant_batch_cost_gets_largest_size() -> None:
    assert step_times(dict.fromkeys((1, 2, 4, 8, 16, 32), 0.005)).best == 32


def test_less_throughput_may_be_had_for_shorter_batches() -> None:
    for share, best in ((0.97, 4), (0.9, 2), (0.6, 1)):
        steps = StepTimes(4, share)
        assert steps.best == 1
        for size, seconds in {1: 0.030, 2: 0.043, 4: 0.080}.items():
            steps.record(size, seconds)
        assert steps.best == best


def test_one_interrupted_batch_changes_nothing() -> None:
    steps = step_times({4: 0.100, 8: 0.160, 16: 0.400})
    for _ in range(3):
        steps.record(8, 0.160)
    steps.record(8, 2.0)
    assert steps.best == 8


def test_the_budget_follows_when_step_times_change() -> None:
    steps = step_times({4: 0.100, 8: 0.160, 16: 0.400})
    for _ in range(WINDOW):
        steps.record(8, 0.300)
    assert steps.best == 4


def test_a_neighbour_is_measured_again_now_and_then() -> None:
    seconds = {4: 0.100, 8: 0.160, 16: 0.400}
    steps = step_times(seconds)
    targets = []
    for _ in range(3 * RECHECK_EVERY_BATCHES):
        targets.append(steps.target)
        steps.record(targets[-1], seconds[targets[-1]])
    assert targets.count(8) > 0.9 * len(targets)
    assert {4, 16} <= set(targets)


def test_a_size_that_was_never_measured_is_tried() -> None:
    steps = step_times({1: 0.030, 2: 0.032})
    for seconds in (0.2, 0.03, 0.2):  # one batch may be interrupted, or lucky
        assert steps.target == 4
        steps.record(4, seconds)
    assert (steps.best, steps.target) == (2, 2)


def test_what_did_not_fit_into_memory_is_not_tried_again() -> None:
    steps = step_times(dict.fromkeys((1, 2, 4, 8, 16), 0.005), largest=16)
    steps.out_of_memory(12)
    assert steps.best == 4
    assert steps.target == 4


def test_a_size_that_did_not_fit_is_tried_again_much_later() -> None:
    steps = StepTimes(4, limit=16)
    for _ in range(2 * REGROW_AFTER_BATCHES):
        steps.record(4, 0.005)
    assert (steps.largest, steps.target) == (16, 8)
    steps.out_of_memory(16)
    assert steps.largest == 8
    for _ in range(2 * REGROW_AFTER_BATCHES):
        steps.record(8, 0.005)
    assert steps.largest == 16


def test_predictions_lie_between_the_measurements() -> None:
    steps = step_times({1: 0.010, 4: 0.040, 8: 0.060})
    assert steps.predict(4) == 0.040
    assert steps.predict(6) == pytest.approx(0.050)
    assert steps.predict(16) == pytest.approx(0.120)
    assert StepTimes(8).predict(3) == 0.0


def test_a_new_bucket_starts_from_what_its_bundle_knows() -> None:
    steps = step_times({4: 0.100, 8: 0.160})
    twin = steps.copy()
    assert twin.best == steps.best
    twin.record(4, 0.01)
    assert steps.predict(4) == 0.100
