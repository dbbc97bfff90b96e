"""Which backend runs a batch follows from what was measured."""

from __future__ import annotations

import pytest

from server.worker.backend_times import Backend, BackendTimes, Choice, Schedule

OFF, FAST, FREE = (0, 0), (8, 8), (3, 3)
ALL: tuple[Backend, ...] = ("eager", "onnx", "int8")


def times(*rows: tuple[Schedule, Backend, int, float]) -> BackendTimes:
    made = BackendTimes()
    for row in rows:
        made.record(*row)
    return made


def chosen(made: BackendTimes, schedule: Schedule, size: int, usable: tuple[Backend, ...] = ALL, *, skippable: bool = False) -> Choice:
    return made.choose(schedule, size, lambda _: usable, skippable=skippable)


def test_nothing_measured_means_eager() -> None:
    assert chosen(times(), FAST, 4) == ("eager", FAST)


@pytest.mark.parametrize(
    ("backend", "seconds", "runs"),
    [("onnx", 0.90, True), ("onnx", 0.98, False), ("onnx", 1.2, False), ("int8", 0.76, True), ("int8", 0.79, False)],
)
def test_a_backend_must_be_faster_than_eager_by_its_margin(backend: Backend, seconds: float, runs: bool) -> None:
    made = times((FAST, "eager", 1, 1.0), (FAST, backend, 1, seconds))
    assert chosen(made, FAST, 1).backend == (backend if runs else "eager")


def test_each_size_has_its_own_and_sizes_between_two_need_both() -> None:
    made = times(
        *((FAST, "eager", size, 1.0) for size in (1, 2, 4, 8)), *((FAST, "onnx", size, 0.5) for size in (1, 2, 4)), (FAST, "onnx", 8, 2.0)
    )
    assert [chosen(made, FAST, size).backend for size in (1, 2, 3, 4, 5, 8, 16)] == ["onnx"] * 4 + ["eager"] * 3


def test_a_backend_that_is_not_open_is_not_chosen() -> None:
    made = times((FAST, "eager", 1, 1.0), (FAST, "onnx", 1, 0.5), (FAST, "int8", 1, 0.2))
    assert chosen(made, FAST, 1, ("eager", "onnx")).backend == "onnx"


def test_a_schedule_that_a_client_made_up_runs_as_all_others_do() -> None:
    made = times((OFF, "eager", 1, 1.0), (OFF, "onnx", 1, 0.5), (FAST, "eager", 1, 0.6), (FAST, "onnx", 1, 0.3))
    assert chosen(made, FREE, 1) == ("onnx", FREE)
    made.record(FAST, "onnx", 1, 0.6)
    assert chosen(made, FREE, 1) == ("eager", FREE), "they disagree"


def test_merging_that_costs_more_than_it_saves_is_left_out() -> None:
    made = times((OFF, "eager", 1, 1.0), (FAST, "eager", 1, 1.5), (OFF, "eager", 8, 8.0), (FAST, "eager", 8, 5.0))
    assert chosen(made, FAST, 1, skippable=True) == ("eager", OFF)
    assert chosen(made, FAST, 1) == ("eager", FAST), "asked for with another r than a rung's"
    assert chosen(made, FAST, 8, skippable=True) == ("eager", FAST)


def test_merging_is_compared_with_the_best_of_each() -> None:
    made = times((OFF, "eager", 1, 1.0), (FAST, "eager", 1, 1.5), (FAST, "onnx", 1, 0.5))
    assert chosen(made, FAST, 1, skippable=True) == ("onnx", FAST)


def test_what_is_kept_is_read_again() -> None:
    made = times((OFF, "eager", 1, 1.0), (FAST, "onnx", 2, 0.5), ((), "eager", 1, 0.1))
    assert BackendTimes.from_json(made.to_json()).to_json() == made.to_json()
