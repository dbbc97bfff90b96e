"""Noise schedules and samplers of denoising diffusion (arXiv 2006.11239, 2010.02502) as tables: no network, no loop, no randomness.

Times are 0-based: t = 0 is the least noise. Tables are double precision; alpha_bar falls to 1e-28 and would be wrong in less.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class ScheduleKind(StrEnum):
    LINEAR = "linear"
    COSINE = "cosine"


class RhoMode(StrEnum):
    """Quantity that is raised to the power of rho."""

    BETA = "beta"
    ALPHA_BAR = "alpha_bar"


@dataclass(frozen=True)
class NoiseSchedule:
    """Amounts of noise that turn an image into noise. The defaults are ours: the paper's text could not be found (arXiv 2304.03283)."""

    kind: ScheduleKind = ScheduleKind.LINEAR
    steps: int = 1000
    """T, the number of training times."""
    rho: float = 0.8
    """1 changes nothing; as a power of beta, less than 1 is more noise at every time; as a power of alpha_bar, more than 1 is."""
    rho_mode: RhoMode = RhoMode.BETA
    beta_start: float = 1e-4
    beta_end: float = 0.02
    """Bounds of a linear schedule of 1000 steps; with fewer steps both grow in proportion."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps}; a schedule has at least one")
        highest = float(self.betas().max())
        if not 0 < highest < 1:
            raise ValueError(f"steps {self.steps}, rho {self.rho}: beta reaches {highest:g}; it must stay below 1")

    def betas(self, device: torch.device | str = "cpu") -> Tensor:
        """Compute the share of noise that each step adds, (T,)."""
        betas = self._plain_betas(device)
        if self.rho_mode is RhoMode.BETA:
            return betas**self.rho
        alphas_bar = (1 - betas).cumprod(0) ** self.rho
        return 1 - alphas_bar / _previous(alphas_bar)

    def alphas_bar(self, device: torch.device | str = "cpu") -> Tensor:
        """Compute the share of the image's variance that is left after each step, (T,)."""
        if self.rho_mode is RhoMode.ALPHA_BAR:
            return (1 - self._plain_betas(device)).cumprod(0) ** self.rho
        return (1 - self.betas(device)).cumprod(0)

    def _plain_betas(self, device: torch.device | str) -> Tensor:
        """Compute beta before rho is applied, (T,). Never on the default device: a model on the meta device still has a schedule."""
        if self.kind is ScheduleKind.LINEAR:
            scale = 1000 / self.steps
            return torch.linspace(scale * self.beta_start, scale * self.beta_end, self.steps, dtype=torch.float64, device=device)
        share = torch.arange(self.steps + 1, dtype=torch.float64, device=device) / self.steps
        level = ((share + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - level[1:] / level[:-1]).clamp(max=0.999)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Compute x_t from x_0 and noise, (B, ...) each, at a time for each sample, (B,).

        The table is built on the device of t, so that no step waits for a copy.
        """
        alphas_bar = self.alphas_bar(t.device)[t]
        return _per_sample(alphas_bar.sqrt(), x0) * x0 + _per_sample((1 - alphas_bar).sqrt(), x0) * noise


class TimestepSpacing(StrEnum):
    """Choice of the K of T times that a sampler visits. Each includes the last time."""

    UNIFORM = "uniform"
    LOG_SNR = "logsnr"
    """Even in the logarithm of signal to noise, over times with any signal: the default schedule is pure noise half of the time."""

    def times(self, schedule: NoiseSchedule, count: int) -> Tensor:
        """Choose K times: (K,) int64, ascending and distinct. Raises ValueError if count is not in 1 to T."""
        if not 1 <= count <= schedule.steps:
            raise ValueError(f"steps: {count}; a sampler of this schedule takes from 1 to {schedule.steps}")
        if self is TimestepSpacing.UNIFORM:
            return (torch.arange(1, count + 1) * schedule.steps).div(count, rounding_mode="floor") - 1
        last = schedule.steps - 1
        if count == 1:
            return torch.tensor([last])
        alphas_bar = schedule.alphas_bar()
        ratio = alphas_bar.log() - torch.log1p(-alphas_bar)  # (T,), falling
        faintest = max(1e-3, float(alphas_bar[-1]))
        goals = torch.linspace(float(ratio[0]), math.log(faintest / (1 - faintest)), count - 1, dtype=torch.float64)
        nearest = (ratio.unsqueeze(0) - goals.unsqueeze(1)).abs().argmin(dim=1)
        index = torch.arange(count)
        slack = torch.cat([nearest, torch.tensor([last])]) - index  # distinct times mean that this does not fall
        slack = slack.cummax(0).values.clamp(max=last - (count - 1))
        return slack + index


class SamplerMethod(StrEnum):
    ANCESTRAL = "ancestral"
    DDIM = "ddim"
    ONE_STEP = "one-step"
    """The prediction from pure noise, as a masked autoencoder makes it."""


class VarianceType(StrEnum):
    POSTERIOR = "posterior"
    BETA = "beta"


@dataclass(frozen=True)
class SamplerTable:
    """Coefficients of reverse steps, one a row: all steps of one sampler, or the next step of every sample in a batch.

    Every sampler is linear: x ← from_x0 · x̂0 + from_xt · x + sigma · noise.
    """

    time: Tensor
    """(S,) int64, the training time at which the network predicts."""
    signal: Tensor
    """(S,) √alpha_bar, the image's share in x at that time; the noise's is √(1 − alpha_bar)."""
    noise: Tensor
    from_x0: Tensor
    from_xt: Tensor
    sigma: Tensor
    """0 in the last step, which returns the prediction."""
    clip: Tensor
    """(S,) bool: keep predictions within the colours that pixels can have."""

    def __len__(self) -> int:
        return self.time.shape[0]

    def rows(self, index: Tensor) -> SamplerTable:
        return SamplerTable(**{name: value[index] for name, value in self._columns().items()})

    def to(self, device: torch.device) -> SamplerTable:
        return SamplerTable(**{name: value.to(device, non_blocking=True) for name, value in self._columns().items()})

    @staticmethod
    def join(batch: Sequence[SamplerTable]) -> SamplerTable:
        return SamplerTable(
            **{field.name: torch.cat([getattr(steps, field.name) for steps in batch]) for field in dataclasses.fields(SamplerTable)}
        )

    def x0_from_noise(self, x: Tensor, noise: Tensor) -> Tensor:
        """Compute the clean image from noisy x and the noise added to it, (S, ...) each."""
        return (x - _per_sample(self.noise, x) * noise) / _per_sample(self.signal, x)

    def take(self, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        """Take one step: x, predicted x0 and fresh noise, (S, ...) each, → next x. noise: None if no row needs any."""
        x = _per_sample(self.from_x0, x) * x0 + _per_sample(self.from_xt, x) * x
        return x if noise is None else x + _per_sample(self.sigma, x) * noise

    def _columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class DiffusionSampler:
    method: SamplerMethod = SamplerMethod.ANCESTRAL
    steps: int = 1000
    eta: float = 0.0
    """DDIM only: 0 adds no noise, 1 as much as ancestral sampling does."""
    variance: VarianceType = VarianceType.POSTERIOR
    """Ancestral sampling only."""
    clip: bool = True
    spacing: TimestepSpacing = TimestepSpacing.UNIFORM

    def __post_init__(self) -> None:
        if self.method is SamplerMethod.ONE_STEP and self.steps != 1:
            raise ValueError(f"steps: {self.steps}; the method one-step takes 1")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta: {self.eta}; it can be from 0 to 1")

    def reverse(self, schedule: NoiseSchedule) -> SamplerTable:
        """Compute all steps in ascending order of time: a sampler executes them from the last to the first."""
        times = self.spacing.times(schedule, self.steps)
        alpha_bar = schedule.alphas_bar()[times]
        before = _previous(alpha_bar)
        alpha = alpha_bar / before
        beta = 1 - alpha
        posterior = beta * (1 - before) / (1 - alpha_bar)
        if self.method is SamplerMethod.DDIM:
            sigma = self.eta * posterior.sqrt()
            direction = (1 - before - sigma.square()).clamp(min=0).sqrt() / (1 - alpha_bar).sqrt()
            from_x0, from_xt = before.sqrt() - direction * alpha_bar.sqrt(), direction
        else:
            sigma = (posterior if self.variance is VarianceType.POSTERIOR else beta).sqrt()
            from_x0, from_xt = before.sqrt() * beta / (1 - alpha_bar), alpha.sqrt() * (1 - before) / (1 - alpha_bar)
        from_x0[0], from_xt[0], sigma[0] = 1.0, 0.0, 0.0
        clip = torch.full_like(times, self.clip, dtype=torch.bool)
        return SamplerTable(times, alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), from_x0, from_xt, sigma, clip)


def _previous(alphas_bar: Tensor) -> Tensor:
    """Shift alpha_bar (T,) to one step earlier: (T,), 1 before the first."""
    return torch.cat([alphas_bar.new_ones(1), alphas_bar[:-1]])


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Reshape values (B,) to (B, 1, ...) and cast them to the precision of x."""
    return values.to(x).view(-1, *[1] * (x.dim() - 1))
