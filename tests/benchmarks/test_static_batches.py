"""The simulation that joining is compared with."""

from __future__ import annotations

import pytest

from benchmarks.static_batches import Arrival, latencies


def seconds(rows: int) -> float:
    return 1.0 + 0.1 * rows


def test_finished_rows_leave_and_make_batch_cheaper() -> None:
    simultaneous = latencies([Arrival(0.0, 2), Arrival(0.0, 5)], seconds, largest=4, slots=1)
    assert simultaneous == pytest.approx([2 * 1.2, 2 * 1.2 + 3 * 1.1])


def test_no_job_joins_until_all_have_finished() -> None:
    late = latencies([Arrival(0.0, 10), Arrival(1.0, 1)], seconds, largest=4, slots=1)
    assert late == pytest.approx([11.0, 11.0 - 1.0 + 1.1])


def test_a_second_slot_takes_who_comes_meanwhile() -> None:
    assert latencies([Arrival(0.0, 10), Arrival(1.0, 1)], seconds, largest=4, slots=2) == pytest.approx([11.0, 1.1])


def test_a_batch_is_bounded() -> None:
    four = latencies([Arrival(0.0, 1)] * 4, seconds, largest=2, slots=1)
    assert four == pytest.approx([1.2, 1.2, 2.4, 2.4])
