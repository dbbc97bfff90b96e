"""Tables and constants that `benchmarks.redis_capacity` makes of its figures."""

from __future__ import annotations

from benchmarks.redis_capacity import RedisFigure, constants, markdown

FIGURES = [
    RedisFigure(gateways, 150_528, 400.0, {"queue": microseconds, "gateway": 1200.0, "worker": 430.0}, 300_000.0, 108.4)
    for gateways, microseconds in ((1, 350.0), (4, 500.0))
]


def test_the_table_extrapolates_to_most_of_a_core() -> None:
    """Divide 70 % of a second by the CPU time of a request."""
    rows = markdown(FIGURES).splitlines()
    assert rows[2] == "| 151 KB | 1 | 400 | 0.35 ms | 1.20 ms | 0.43 ms | 120 MB/s | 108 ms | 2,000/s |"
    assert rows[3].endswith("| 1,400/s |")


def test_the_plan_uses_the_largest_cpu_time() -> None:
    text = constants(FIGURES, {150_528: 222_359.4, 0: 2_527_824})
    assert text.splitlines() == ["CPU_S = {150_528: 0.000500}", "MEMORY_BYTES = {150_528: 222_359}", "IDLE_BYTES = 2_527_824"]
