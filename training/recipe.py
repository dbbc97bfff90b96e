"""A recipe: everything that decides what a training run makes, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.bundle import Preprocess
from models.merge_schedule import MergeSchedule
from training.data.flags import Flags


class RecipeError(Exception):
    """A recipe cannot be used; the message names the file, the field and the reason."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Schema):
    """A ViT with mean pooling, and the decoder that it is pre-trained with."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


class Phase(_Schema):
    """One run of the loop. `lr` is the peak, reached after `warmup` epochs and left on a cosine towards `min_lr`."""

    epochs: int = Field(gt=0)
    warmup: float = Field(ge=0)
    batch_size: int = Field(gt=0)
    lr: float = Field(gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(ge=0)
    betas: tuple[float, float]
    clip_norm: float | None = Field(default=None, gt=0)
    renderings: int = Field(gt=0)
    """Pictures of every drawing in an epoch."""


class Pretraining(Phase):
    mask_ratio: float = Field(gt=0, lt=1)


class Finetuning(Phase):
    layer_decay: float = Field(gt=0, le=1)
    drop_path: float = Field(ge=0, lt=1)
    label_smoothing: float = Field(ge=0, lt=1)
    merge: list[int | list[int] | dict[str, int | float]] = Field(min_length=1)
    """Each batch trains under one of these merge schedules, drawn at random."""

    @model_validator(mode="after")
    def _schedules(self) -> Self:
        for schedule in self.merge:
            MergeSchedule.parse(schedule)
        return self


class Step(_Schema):
    """A rung to be measured."""

    name: str
    schedule: int | list[int] | dict[str, int | float]


class Ladder(_Schema):
    rungs: list[Step] = Field(min_length=1)
    min_throughput: float = Field(gt=1)
    """The default rung is the most accurate on the validation split among those at least this fast, relative to merging off."""
    batch_size: int = Field(gt=0)
    rounds: int = Field(ge=3)


class Recipe(_Schema):
    name: str
    version: str
    description: str
    license: str
    seed: int
    precision: Literal["no", "bf16"]
    checkpoint_every: int = Field(gt=0)
    """Steps between checkpoints."""
    workers: int = Field(ge=0)
    """Processes that prepare batches while others train; the cores that they leave are for training."""
    data: Flags
    preprocess: Preprocess
    model: Model
    pretrain: Pretraining
    finetune: Finetuning
    comparison_epochs: int = Field(gt=0)
    """Of fine-tuning with and without pre-training, to compare the two."""
    ladder: Ladder
    examples: Path | None = None
    """A folder of pictures whose predictions the bundle records, so that anybody can check the weights; from the working directory."""

    @model_validator(mode="after")
    def _preprocess_fits(self) -> Self:
        if self.preprocess.image_size != self.model.image_size:
            raise ValueError(f"preprocess.image_size {self.preprocess.image_size} is not model.image_size {self.model.image_size}")
        if self.preprocess.interpolation == "tf1-bicubic":
            raise ValueError("preprocess.interpolation tf1-bicubic: only the service prepares pictures so")
        return self


def read(path: Path) -> Recipe:
    """Raises RecipeError."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise RecipeError(f"{path}: {where}: {first['msg']}") from error
