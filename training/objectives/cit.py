"""CiT (arXiv 2301.02241): a text tower learns to match a pre-trained vision tower, on captions that it chooses itself between rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.systems.image_text.cit import CiT
from models.systems.image_text.dual_encoder import unit_vectors
from training.curation import Captions, Curation, Curator
from training.errors import DataError
from training.objectives.checks import require_model, require_tensor
from training.objectives.contrastive import contrast
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings
from training.optim import ParameterGroup, group_by_decay
from training.recipe_settings import OptimiserSettings, RecipeSettings

PADDING = 0
"""BERT's token that fills up short texts."""


class CurationSettings(RecipeSettings):
    """The defaults are those of YFCC15M with the class names of ImageNet-1k."""

    labels: tuple[str | tuple[str, ...], ...] | Path
    """Targets of the model: a text, or several of the same meaning, for each label; or a file with a label in each line."""
    steps: int = Field(default=100, gt=0)
    """Inner steps of a round."""
    threshold: float = 0.55
    min_ratio: float | None = Field(default=0.003, ge=0, le=1)
    unique: bool = True
    """See `training.curation.Curation`."""
    pool: int = Field(default=2048, gt=0)
    """Captions in a batch of the stream: twice the batch of a device, as published."""
    warm_up: int = Field(default=0, ge=0)
    """Rounds at first that keep every caption."""
    seed: int = 0

    def curator(self) -> Curator:
        curation = Curation(target=0, threshold=self.threshold, min_ratio=self.min_ratio, unique=self.unique)
        return Curator(curation, self.label_texts(), pool=self.pool, warm_up=self.warm_up, seed=self.seed)

    def label_texts(self) -> list[tuple[str, ...]]:
        if not isinstance(self.labels, Path):
            return [(label,) if isinstance(label, str) else label for label in self.labels]
        try:
            lines = self.labels.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise ValueError(f"objective.curation.labels: {self.labels} cannot be read ({error.strerror})") from error
        return [(line.strip(),) for line in lines if line.strip()]


class CiTSettings(ObjectiveSettings):
    kind: Literal["cit"] = "cit"
    curation: CurationSettings | None = None
    """None: learn from every caption."""
    symmetric: bool = False
    """Also find the image of each text. CiT only finds the text of each image."""
    projection_decay: float = Field(default=1.0, ge=0)
    """Weight decay of both projections; the optimiser's is of all else."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> CiTObjective:
        return CiTObjective(require_model(self.kind, model, CiT), self)


class CurationRounds:
    """Epochs of an objective that chooses their samples: each is a round, at whose start captions are compared with labels."""

    def __init__(self, settings: CurationSettings) -> None:
        self.settings = settings
        self.curator = settings.curator()

    @torch.no_grad()
    def choose(self, objective: nn.Module, captions: Captions, epoch: int, batch: int, describe: Callable[[Tensor], Tensor]) -> Tensor:
        """Numbers of the samples of an epoch, int64, as many as its steps take. batch: those of a step over all ranks; describe: token ids
        (n, N) → (n, C), by which captions are compared with labels.

        Where one pass over all captions yields fewer, they are repeated. Raises DataError if there is not one batch of them.
        """
        training, count = objective.training, self.settings.steps * batch
        objective.eval()
        chosen = self.curator.choose(epoch, captions, count, describe)
        objective.train(training)
        if len(chosen) < batch:
            raise DataError(
                f"objective.curation.threshold: only {len(chosen)} of {len(captions)} captions are above "
                f"{self.settings.threshold}, and a step takes {batch}"
            )
        return chosen.repeat(-(-count // len(chosen)))[:count]


class CiTObjective(nn.Module):
    """Batch: normalised `pixels` (B, 3, S, S) and the `words` of their captions, token ids (B, N) with 0 for padding.

    An epoch is a round: at its start, `subset` says which samples it has. MoCo-v3's projector normalises each rank's batch by itself, as
    published.
    """

    def __init__(self, model: CiT, settings: CiTSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.rounds = None if settings.curation is None else CurationRounds(settings.curation)
        model.vision.requires_grad_(False)

    def train(self, mode: bool = True) -> CiTObjective:
        super().train(mode)
        self.model.vision.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        words = require_tensor(batch, "words")
        images = unit_vectors(self.model.encode_images(require_tensor(batch, "pixels")))
        texts = unit_vectors(self.model.encode_texts(words, words != PADDING))
        values = contrast(images, texts, self.model.scale(), symmetric=self.settings.symmetric)
        return values if self.rounds is None else values | {"curation_ratio": values["loss"].new_tensor(self.rounds.curator.ratio)}

    @property
    def epoch_steps(self) -> int | None:
        """Steps of a round; None without curation."""
        return None if self.rounds is None else self.rounds.settings.steps

    def subset(self, captions: Captions, epoch: int, batch: int) -> Tensor:
        """Choose samples as in `CurationRounds.choose`, (n,) int64."""
        assert self.rounds is not None
        return self.rounds.choose(self, captions, epoch, batch, self.describe)

    def describe(self, words: Tensor) -> Tensor:
        """Encode token ids (n, N) to features (n, C): the text tower before its projection."""
        words = words.to(self.model.logit_scale.device)
        return self.model.encode_text_features(words, words != PADDING).float()

    def get_extra_state(self) -> str:
        return "" if self.rounds is None else self.rounds.curator.state()

    def set_extra_state(self, state: str) -> None:
        if self.rounds is not None:
            self.rounds.curator.restore(state)

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        """One-dimensional parameters do not decay."""

        def decay(name: str, parameter: nn.Parameter) -> float:
            if parameter.dim() == 1:
                return 0.0
            return self.settings.projection_decay if "_projection." in name else settings.weight_decay

        return group_by_decay(self.model, decay)
