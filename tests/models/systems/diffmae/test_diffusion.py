"""Schedules and samplers beyond the recorded tables (tests/golden/diffmae): by identities that any such table must satisfy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.systems.diffmae.diffusion import (
    DiffusionSampler,
    NoiseSchedule,
    RhoMode,
    SamplerMethod,
    SamplerTable,
    ScheduleKind,
    TimestepSpacing,
    VarianceType,
)
from models.systems.diffmae.system import PRESETS
from tests.golden.case import read_case
from tests.golden.replays.diffmae import replay

SCHEDULES = {
    "linear": NoiseSchedule(rho=1.0),
    "beta^0.8": NoiseSchedule(),
    "beta^0.6": NoiseSchedule(rho=0.6),
    "alpha_bar^0.8": NoiseSchedule(rho_mode=RhoMode.ALPHA_BAR),
    "cosine": NoiseSchedule(ScheduleKind.COSINE, rho=1.0),
    "cosine beta^0.8": NoiseSchedule(ScheduleKind.COSINE),
    "short": NoiseSchedule(steps=50),
}
PRESETS = [DiffusionSampler(SamplerMethod(preset.sampler), preset.steps) for preset in PRESETS.values()]


@pytest.fixture(params=list(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return SCHEDULES[request.param]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [0.897, 0.524, 0.0786, 3.35e-3, 4.04e-5]),
        ("beta^0.8", [0.660, 0.126, 8.01e-4, 3.87e-7, 1.71e-11]),
        ("beta^0.6", [0.200, 1.15e-3, 1.36e-9, 9.97e-18, 9.23e-28]),
        ("alpha_bar^0.8", [0.917, 0.596, 0.131, 1.05e-2, 3.05e-4]),
        ("cosine", [0.972, 0.847, 0.494, 0.144, 2.43e-9]),
    ],
)
def test_how_much_of_the_picture_is_left(name: str, expected: list[float]) -> None:
    left = SCHEDULES[name].alphas_bar()[[99, 249, 499, 749, 999]]
    torch.testing.assert_close(left, torch.tensor(expected, dtype=torch.float64), rtol=5e-3, atol=0.0)


def test_recorded_tables_hold_without_an_absolute_tolerance() -> None:
    """alpha_bar falls to 1e-11 and below, where the recorded tolerance of 1e-9 would pass anything."""
    case = read_case(Path(__file__).parents[3] / "golden" / "diffmae" / "schedule")
    replayed = replay(case).outputs
    tables = {name: value for name, value in case.outputs.items() if not name.endswith(".x_t")}
    assert len(tables) > 25
    for name, value in tables.items():
        torch.testing.assert_close(replayed[name].double(), value.double(), rtol=2e-5, atol=0.0, msg=name)


def test_betas_and_what_is_left_agree(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close((1 - schedule.betas()).log().cumsum(0).exp(), schedule.alphas_bar(), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("mode", list(RhoMode))
@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_a_rho_of_one_changes_nothing(kind: ScheduleKind, mode: RhoMode) -> None:
    one, plain = NoiseSchedule(kind, rho=1.0, rho_mode=mode), NoiseSchedule(kind, rho=1.0)
    torch.testing.assert_close(one.betas(), plain.betas(), rtol=1e-10, atol=1e-14)


def test_shorter_linear_schedules_add_more_noise_in_each_step() -> None:
    short = NoiseSchedule(steps=100, rho=1.0).betas()
    assert short[[0, -1]].tolist() == pytest.approx([1e-3, 0.2])


@pytest.mark.parametrize(("steps", "reason"), [(0, "has at least one"), (20, "beta reaches 1;")])
def test_a_schedule_that_leaves_nothing_is_refused(steps: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        NoiseSchedule(steps=steps)


def test_each_sample_is_noised_at_its_own_time() -> None:
    x0, noise, t = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.tensor([0, 500, 999])
    joint = NoiseSchedule().add_noise(x0, t, noise)
    left = NoiseSchedule().alphas_bar()
    for sample, time in enumerate(t):
        expected = float(left[time].sqrt()) * x0[sample] + float((1 - left[time]).sqrt()) * noise[sample]
        torch.testing.assert_close(joint[sample], expected)


@pytest.mark.parametrize(
    "sampler",
    [
        DiffusionSampler(SamplerMethod.ANCESTRAL, 13),
        DiffusionSampler(SamplerMethod.DDIM, 13),
        DiffusionSampler(SamplerMethod.DDIM, 13, eta=0.5),
        DiffusionSampler(SamplerMethod.DDIM, 50, eta=1.0),
    ],
    ids=str,
)
def test_with_the_true_picture_a_step_leads_to_the_earlier_time(schedule: NoiseSchedule, sampler: DiffusionSampler) -> None:
    """x_t = √a x0 + √(1 − a) e must become √a' x0 + √(1 − a') e', e' of variance 1: this makes a table right, independent of its source."""
    steps = sampler.reverse(schedule)
    before = torch.cat([torch.ones(1, dtype=torch.float64), steps.signal[:-1].square()])
    torch.testing.assert_close(steps.from_x0 + steps.from_xt * steps.signal, before.sqrt(), rtol=1e-9, atol=1e-12)
    variance = (steps.from_xt * steps.noise).square() + steps.sigma.square()
    torch.testing.assert_close(variance, 1 - before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 10])
def test_remainder_of_x_is_precise_if_step_leaves_almost_nothing(schedule: NoiseSchedule, count: int) -> None:
    """√alpha goes down to 1e-9, where 1 − beta has no digits left."""
    steps = DiffusionSampler(SamplerMethod.ANCESTRAL, count).reverse(schedule)
    left = schedule.alphas_bar()[steps.time].tolist()
    for index in range(1, count):
        a, before = left[index], left[index - 1]
        assert float(steps.from_xt[index]) == pytest.approx((a / before) ** 0.5 * (1 - before) / (1 - a), rel=1e-12, abs=0.0)


def test_ddim_with_all_noise_is_ancestral_sampling(schedule: NoiseSchedule) -> None:
    ddim, ddpm = (DiffusionSampler(method, 10, eta=1.0).reverse(schedule) for method in (SamplerMethod.DDIM, SamplerMethod.ANCESTRAL))
    for name in ("time", "from_x0", "from_xt", "sigma"):
        torch.testing.assert_close(getattr(ddim, name), getattr(ddpm, name), rtol=1e-9, atol=1e-10)


def test_beta_variance_adds_the_whole_noise_of_the_step() -> None:
    steps = DiffusionSampler(SamplerMethod.ANCESTRAL, 10, variance=VarianceType.BETA).reverse(NoiseSchedule())
    left = NoiseSchedule().alphas_bar()[steps.time]
    torch.testing.assert_close(steps.sigma[1:].square(), 1 - left[1:] / left[:-1])
    assert steps.sigma[0] == 0


@pytest.mark.parametrize(
    "sampler",
    [
        DiffusionSampler(SamplerMethod.ONE_STEP, 1),
        DiffusionSampler(SamplerMethod.ANCESTRAL, 1),
        DiffusionSampler(SamplerMethod.DDIM, 1, eta=0.3),
    ],
    ids=str,
)
def test_single_step_of_any_method_returns_prediction(sampler: DiffusionSampler) -> None:
    steps, x, x0 = sampler.reverse(NoiseSchedule()), torch.randn(1, 4, 6), torch.randn(1, 4, 6)
    assert steps.time.tolist() == [999]
    assert torch.equal(steps.take(x, x0, None), x0)


@pytest.mark.parametrize("sampler", [*PRESETS, DiffusionSampler(SamplerMethod.ANCESTRAL, 10, variance=VarianceType.BETA)], ids=str)
def test_the_last_step_returns_the_prediction_untouched(sampler: DiffusionSampler) -> None:
    last = sampler.reverse(NoiseSchedule()).rows(torch.tensor([0]))
    x, x0, noise = torch.randn(3, 1, 4, 6).unbind()
    assert torch.equal(last.take(x, x0, noise), x0)


@pytest.mark.parametrize("spacing", list(TimestepSpacing))
@pytest.mark.parametrize("count", [1, 2, 3, 7, 49, 50])
def test_times_are_distinct_and_end_at_the_last(spacing: TimestepSpacing, count: int, schedule: NoiseSchedule) -> None:
    times = spacing.times(schedule, count)
    assert len(times) == count and times[-1] == schedule.steps - 1 and times[0] >= 0
    assert bool((times.diff() > 0).all())


@pytest.mark.parametrize("spacing", list(TimestepSpacing))
def test_a_full_chain_covers_every_time(spacing: TimestepSpacing) -> None:
    assert torch.equal(spacing.times(NoiseSchedule(), 1000), torch.arange(1000))


def test_log_snr_spacing_does_not_linger_in_pure_noise() -> None:
    assert TimestepSpacing.LOG_SNR.times(NoiseSchedule(), 5).tolist() == [0, 34, 261, 490, 999]
    assert TimestepSpacing.UNIFORM.times(NoiseSchedule(), 10).tolist() == list(range(99, 1000, 100))


@pytest.mark.parametrize("count", [0, 1001])
def test_more_steps_than_times_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"steps: {count}; a sampler of this schedule takes from 1 to 1000"):
        DiffusionSampler(SamplerMethod.ANCESTRAL, count).reverse(NoiseSchedule())


def test_impossible_samplers_are_refused() -> None:
    with pytest.raises(ValueError, match="one-step takes 1"):
        DiffusionSampler(SamplerMethod.ONE_STEP, 10)
    with pytest.raises(ValueError, match=r"eta: 1\.5"):
        DiffusionSampler(SamplerMethod.DDIM, 10, eta=1.5)


def test_rows_of_different_samplers_make_one_batch() -> None:
    first, second = (
        DiffusionSampler(SamplerMethod.ANCESTRAL, 10).reverse(NoiseSchedule()),
        DiffusionSampler(SamplerMethod.DDIM, 7, clip=False).reverse(NoiseSchedule()),
    )
    batch = SamplerTable.join([first.rows(torch.tensor([9])), second.rows(torch.tensor([2]))])
    assert batch.time.tolist() == [999, 427] and batch.clip.tolist() == [True, False] and len(batch) == 2
    x, x0, noise = torch.randn(3, 2, 4, 6).unbind()
    joint = batch.take(x, x0, noise)
    alone = second.rows(torch.tensor([2])).take(x[1:], x0[1:], noise[1:])
    assert torch.equal(joint[1:], alone)


def test_the_picture_follows_from_the_noise() -> None:
    schedule = replace(NoiseSchedule(), rho=1.0)
    steps = DiffusionSampler(SamplerMethod.DDIM, 10).reverse(schedule).rows(torch.tensor([0, 5]))
    x0, noise = torch.randn(2, 2, 3, 4, dtype=torch.float64).unbind()
    x = schedule.add_noise(x0, steps.time, noise)
    torch.testing.assert_close(steps.x0_from_noise(x, noise), x0)
