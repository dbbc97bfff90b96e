"""Settings of a phase: its optimiser, its learning rate and its loop. All of it is checked before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RecipeSettings(BaseModel):
    """Unknown fields are refused by name; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimiserSettings(RecipeSettings):
    """AdamW, or LARS and SGD where a recipe was published with them."""

    kind: Literal["adamw", "lars", "sgd"] = "adamw"
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    base_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate for 256 samples a step: times `batch_size` / 256 it is `lr`."""
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Betas of AdamW. The first is the momentum of LARS and SGD."""
    eps: float = Field(default=1e-8, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer learns this many times as fast as the one above it."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.lr is None) == (self.base_lr is None):
            raise ValueError("give one of lr and base_lr")
        return self

    def peak(self, batch_size: int) -> float:
        """Peak learning rate of steps of `batch_size` samples."""
        if self.lr is not None:
            return self.lr
        assert self.base_lr is not None
        return self.base_lr * batch_size / 256


class ScheduleSettings(RecipeSettings):
    """The learning rate over a phase: a linear rise over `warmup` epochs, then `kind` down to `min_lr`."""

    kind: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: float = Field(default=0.0, ge=0)
    """Epochs of the linear rise."""
    min_lr: float = Field(default=0.0, ge=0)
    every: Literal["step", "epoch"] = "step"
    """Interval of updates. With "epoch", epoch e has the rate of e + 1, as LART is published."""


class LoopSettings(RecipeSettings):
    """One run of the loop."""

    epochs: float = Field(gt=0, le=1e9, allow_inf_nan=False)
    samples_per_epoch: int | None = Field(default=None, gt=0)
    """Length of an epoch of the schedule, where it is not the data's (FLIP counts in epochs of ImageNet)."""
    batch_size: int = Field(gt=0)
    """Samples of one optimiser step, over all processes and micro-batches: a recipe means the same on any number of processes."""
    micro_batch: int | None = Field(default=None, gt=0)
    """The most samples that one process takes at once; gradients of several add up to a step. None: all of its share."""
    clip_norm: float | None = Field(default=None, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is what the phase gives away then."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    checkpoint_activations: bool = False
    """Keep the input of each block only and compute the rest again in the backward pass."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Sharding over several processes: every one has all weights, or a part of them (FSDP2)."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints."""
    log_every: int = Field(default=10, gt=0)
    workers: int = Field(default=0, ge=0)
    """Processes that prepare batches, for each process that trains."""
    max_unreadable: float = Field(default=0.01, ge=0, le=1)
    """Share of samples that may be unreadable before the run stops."""
    max_steps: int | None = Field(default=None, gt=0)
    max_minutes: float | None = Field(default=None, gt=0)
    """Budgets: the run saves and stops there; the same command goes on."""
