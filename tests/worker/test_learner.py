"""Which arm runs a batch, learned from the batches before it, in simulations without a clock."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.worker.backends.learner import HANDICAPS, MAX_CREDIT_S, TRIAL_SHARE, Arm, LearnedRung, Learner, Schedule, Turn
from tests.support.learner_simulation import Seconds, SimulatedBatch, simulate

OFF, FAST, CUSTOM = (0, 0), (4, 4), (3, 3)
ARMS: tuple[Arm, ...] = get_args(Arm)


def speed(times: float) -> Seconds:
    """Return the seconds of an arm that is so many times as fast as eager, which takes 10 ms per item and batch."""
    return lambda size: 0.01 * (size + 1) / times


def speeds(**times: float) -> dict[Arm, Seconds]:
    return {"eager": speed(1.0), **{arm: speed(times[arm]) for arm in ARMS if arm in times}}


def run(
    learner: Learner, schedule: Schedule, seconds: Mapping[Arm, Seconds], count: int, size: int = 4, noise: float = 0.0, seed: int = 0
) -> list[SimulatedBatch]:
    return list(simulate(learner, schedule, seconds, [size] * count, noise=noise, seed=seed))


def learner_of(*arms: Arm, schedule: Schedule = FAST) -> Learner:
    return Learner({schedule: ("eager", *arms)})


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({"fused": 1.05, "onnx": 1.5, "int8": 2.1}, "int8"),
        ({"fused": 1.05, "onnx": 1.8, "int8": 2.1}, "onnx"),
        ({"bfloat16": 1.6, "int8": 1.2}, "bfloat16"),
        ({"fused": 1.06, "onnx": 0.9, "bfloat16": 0.7}, "fused"),
        ({"fused": 1.01, "onnx": 1.02, "int8": 1.1}, "eager"),
    ],
)
def test_the_best_score_runs_within_120_batches(times: dict[str, float], best: Arm) -> None:
    seconds = speeds(**times)
    for seed in range(20):
        learner = learner_of(*seconds)
        batches = run(learner, FAST, seconds, 120, noise=0.01, seed=seed)
        assert batches[-1].turn.arm == learner.leader(FAST, 4) == best


def test_noise_of_8_percent_rarely_hides_the_best_arm() -> None:
    seconds = speeds(fused=1.05, onnx=1.5, int8=2.1)
    leaders = []
    for seed in range(100):
        learner = learner_of(*seconds)
        run(learner, FAST, seconds, 400, noise=0.08, seed=seed)
        leaders.append(learner.leader(FAST, 4))
    assert leaders.count("int8") >= 95 and set(leaders) <= {"int8", "onnx"}


@settings(max_examples=100, deadline=None)
@given(
    times=st.dictionaries(st.sampled_from([arm for arm in ARMS if arm != "eager"]), st.floats(0.67, 5.0)),
    sizes=st.lists(st.sampled_from([1, 2, 3, 4, 8, 16, 32]), min_size=1, max_size=300),
    noise=st.sampled_from([0.0, 0.05, 0.2]),
    merges=st.booleans(),
)
def test_trials_cost_two_percent_and_one_batch(times: dict[str, float], sizes: list[int], noise: float, merges: bool) -> None:
    """Check what trials take beyond the leader's median, for any arms that verification lets in: none takes more than 1.5 times eager."""
    schedule, seconds = FAST if merges else OFF, speeds(**times)
    learner = Learner({schedule: list(seconds)})
    total = excess = largest = 0.0
    leaders: dict[tuple[Arm, int], list[float]] = {}
    for batch in simulate(learner, schedule, seconds, sizes, noise=noise):
        total, largest = total + batch.seconds, max(largest, batch.seconds)
        key = learner.leader(schedule, batch.size), batch.size.bit_length()
        if batch.turn.is_trial and batch.turn.arm != key[0]:
            excess += max(0.0, batch.seconds - batch.size * median(leaders[key][-9:]))
        elif not batch.turn.is_trial or key in leaders:
            leaders.setdefault((batch.turn.arm, key[1]), []).append(batch.seconds / batch.size)
        assert excess <= 1.05 * TRIAL_SHARE * total + largest
        assert learner.credit <= MAX_CREDIT_S


def test_a_winner_that_becomes_slow_is_left() -> None:
    learner = learner_of("fused", "onnx", schedule=OFF)
    run(learner, OFF, speeds(fused=1.02, onnx=1.5), 200)
    assert learner.leader(OFF, 4) == "onnx"
    run(learner, OFF, speeds(fused=1.02, onnx=1 / 2.3), 60)
    assert learner.leader(OFF, 4) in ("eager", "fused")


@pytest.mark.parametrize(("times", "kind"), [({"int8": 2.0}, "int8"), ({"bfloat16": 1.5}, "bfloat16"), ({"onnx": 1.5}, "graph")])
def test_once_settled_no_arm_that_answers_differently_runs(times: dict[str, float], kind: str) -> None:
    slower = {"fused": 1.05, "onnx": 0.8, "int8": 0.7, "bfloat16": 0.7}
    seconds = speeds(**(slower | times))
    learner = learner_of(*seconds)
    run(learner, FAST, seconds, 1000)
    assert learner.snapshot()["4,4"].kind == kind
    [(winner, _)] = times.items()
    slow = {**seconds, winner: speed(0.1)}
    later = [batch.turn.arm for size in (4, 1, 32, 3) for batch in run(learner, FAST, slow, 500, size)]
    assert set(later) == {winner}


def test_a_kind_is_settled_over_all_sizes_and_arms_by_size() -> None:
    """onnx is fast in small batches, and answers as eager does if nothing merges."""
    seconds: dict[Arm, Seconds] = {"eager": speed(1.0), "onnx": lambda size: 0.01 * (size + 1) / (2.0 if size < 8 else 0.8)}
    learner = learner_of("onnx", schedule=OFF)
    list(simulate(learner, OFF, seconds, [1, 16] * 300))
    assert learner.snapshot()["0,0"].kind == "float32"
    assert (learner.leader(OFF, 1), learner.leader(OFF, 16)) == ("onnx", "eager")


def test_large_batches_weigh_more_than_small_ones_for_a_kind() -> None:
    """Imitate a GPU, where small batches take as long as it takes to launch them."""
    seconds: dict[Arm, Seconds] = {"eager": lambda size: 0.005 + 0.002 * size, "bfloat16": lambda size: 0.005 + 0.0004 * size}
    learner = learner_of("bfloat16")
    for arm in seconds:
        for _ in range(2):
            learner.observe(FAST, Turn(arm), 64, seconds[arm](64), is_cold=False)
    assert learner.leader(FAST, 1) == "bfloat16"


def test_arms_that_come_late_are_waited_for_and_tried() -> None:
    seconds = speeds(bfloat16=1.4, int8=2.0)
    learner = learner_of("bfloat16", "int8")
    batches = list(simulate(learner, FAST, seconds, [4] * 400, opened_at={"bfloat16": 1.0, "int8": 6.0}))
    arms = [batch.turn.arm for batch in batches]
    assert arms.index("bfloat16") < arms.index("int8")
    assert arms[-1] == "int8"


def test_an_arm_that_fails_leaves_its_place_to_the_next_best() -> None:
    seconds = speeds(onnx=1.6, int8=2.5)
    learner = learner_of("onnx", "int8", "fused")
    run(learner, FAST, seconds, 100)
    assert learner.leader(FAST, 4) == "int8"
    assert learner.snapshot() == {}, "fused is not open yet"
    learner.drop("int8")
    run(learner, FAST, seconds, 100)
    learner.drop("fused")
    assert learner.leader(FAST, 4) == "onnx"
    assert learner.snapshot()["4,4"].kind == "graph"


def test_eager_runs_what_a_leader_that_left_memory_would_run() -> None:
    learner = learner_of("int8")
    run(learner, FAST, speeds(int8=2.0), 100)
    assert learner.choose(FAST, 4, ["eager"]) == Turn("eager")
    assert learner.choose(FAST, 4, ["eager", "int8"]) == Turn("int8")


def test_equal_observations_lead_to_equal_choices() -> None:
    seconds = speeds(fused=1.05, onnx=1.5, int8=1.9)
    once, again = (run(learner_of(*seconds), FAST, seconds, 300, noise=0.2, seed=7) for _ in range(2))
    assert once == again


def test_what_is_kept_and_read_again_chooses_the_same() -> None:
    seconds = speeds(fused=1.3, onnx=1.5, int8=0.8)
    learner = Learner({OFF: ["eager", "onnx"], FAST: list(seconds)})
    for schedule in (OFF, FAST):
        for size in (1, 4, 16):
            run(learner, schedule, speeds(onnx=1.5) if schedule == OFF else seconds, 100, size)
    stored = msgspec.json.decode(msgspec.json.encode(learner.snapshot()), type=dict[str, LearnedRung])
    later = Learner({OFF: ["eager", "onnx"], FAST: list(seconds)})
    later.restore(stored)
    for schedule in (OFF, FAST):
        for size in (1, 3, 4, 16, 32):
            assert later.choose(schedule, size, list(seconds)) == Turn(learner.leader(schedule, size))
    assert later.snapshot() == stored
    other = Learner({OFF: ["eager"]})
    other.restore(stored)
    assert other.choose(OFF, 1, ["eager"]) == Turn("eager"), "an arm that it does not have"


def test_a_thousand_schedules_of_clients_keep_nothing() -> None:
    learner = Learner({OFF: ["eager", "bfloat16"], FAST: ["eager", "bfloat16"]})
    for r in range(1000):
        run(learner, (r, r + 1), speeds(bfloat16=2.0), 3)
    assert learner.snapshot() == {}
    for schedule in (OFF, FAST):
        run(learner, schedule, speeds(bfloat16=2.0), 100)
    assert set(learner.snapshot()) == {"0,0", "4,4"}
    assert learner.choose(CUSTOM, 4, ["eager", "bfloat16"]) == Turn("bfloat16"), "as all rungs do"
    assert learner.choose(CUSTOM, 4, ["eager"]) == Turn("eager")


def test_custom_schedules_run_by_eager_unless_all_rungs_agree() -> None:
    learner = Learner({OFF: ["eager", "bfloat16"], FAST: ["eager", "bfloat16"]})
    run(learner, OFF, speeds(bfloat16=2.0), 100)
    run(learner, FAST, speeds(bfloat16=0.9), 100)
    assert learner.choose(CUSTOM, 4, list(HANDICAPS)) == Turn("eager")


def test_first_minute_has_nine_tenths_of_the_settled_speed() -> None:
    """Imitate a machine under load: bfloat16 is open after 4 s, the graphs, which a child of low priority writes, after 12 and 20 s."""
    seconds = speeds(fused=1.05, bfloat16=1.5, onnx=1.4, int8=2.2)
    opened_at: dict[Arm, float] = {"bfloat16": 4.0, "int8": 12.0, "onnx": 20.0, "fused": 30.0}
    shares = []
    for seed in range(10):
        batches = list(simulate(learner_of(*seconds), FAST, seconds, [8] * 3000, opened_at=opened_at, noise=0.08, seed=seed))
        clock, images, busy = 0.0, 0, 0.0
        for batch in batches:
            if 20.0 <= clock < 60.0:
                images, busy = images + batch.size, busy + batch.seconds
            clock += batch.seconds
        shares.append(images / busy / (8 / seconds["int8"](8)))
    assert min(shares) >= 0.9
