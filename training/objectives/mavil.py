"""MAViL's pre-training (arXiv 2212.08071): masked sound and video rebuild themselves, or what a teacher makes of them, and find each other.
And its fine-tuning, with whole times and mel bins removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.layers.masked_encoder import Masking
from models.systems.mavil.model import MAViL, keep_time_mel_grid
from models.systems.mavil.pretraining import MaskNoise, MAViLPretraining, MAViLPretrainingConfig, MAViLPretrainingOutput, TargetFeatures
from training import random_draws
from training.collectives import term_of_mean
from training.objectives.checks import load_teacher, require_model, require_tensor
from training.objectives.contrastive import contrast
from training.objectives.protocols import Batch, ObjectiveContext, ObjectiveSettings
from training.objectives.supervised import labels_of, soft_targets
from training.optim import ParameterGroup, layer_decay_groups
from training.recipe_settings import OptimiserSettings


class MAViLSettings(ObjectiveSettings):
    """Mask ratio, temperatures and weights are the model's. A model with `predict_features` learns from a teacher: stage 2."""

    kind: Literal["mavil"] = "mavil"
    teacher: Path | None = None
    """The pre-trained model of the stage or round before: a bundle's folder, or the file of weights that an earlier phase has written."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> MAViLPretrainingObjective:
        network: MAViLPretraining = require_model(self.kind, model, MAViLPretraining)
        path = self.teacher
        if path is None:
            return MAViLPretrainingObjective(network)
        return MAViLPretrainingObjective(network, load_teacher(path) if path.is_dir() else _teacher_of(path, network.config))


class MAViLPretrainingObjective(nn.Module):
    """Batch, normalised: `spectrogram` (B, 1, times, mel bins) and `clip` (B, 3, T, S, S)."""

    def __init__(self, model: MAViLPretraining, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        if (teacher is not None) != model.config.predict_features:
            raise ValueError("teacher: needed where the model has predict_features, and only there")
        self.teacher = None if teacher is None else require_model("mavil", teacher, MAViLPretraining).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MAViLPretrainingObjective:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config, draw = self.model.config, batch["draw"]
        audio, video = (
            (random_draws.uniform(draw, (patches,), f"{name} mask 1"), random_draws.uniform(draw, (patches,), f"{name} mask 2"))
            for name, patches in (("audio", config.audio_patches), ("video", config.video_patches))
        )
        return self.losses(require_tensor(batch, "spectrogram"), require_tensor(batch, "clip"), MaskNoise(audio, video))

    def losses(self, audio: Tensor, clip: Tensor, noise: MaskNoise) -> dict[str, Tensor]:
        """Contrasts are with the samples of all ranks."""
        config = self.model.config
        features: TargetFeatures | None = None
        if self.teacher is not None:
            with torch.no_grad():
                features = self.teacher.teacher_features(audio, clip)
        learned: MAViLPretrainingOutput = self.model(audio, clip, noise, features)
        audio_half, video_half = learned.audio, learned.video
        audio_loss, video_loss = (term_of_mean(half.loss, half.mask.sum()) for half in (audio_half, video_half))
        inter = contrast(audio_half.embeddings[0], video_half.embeddings[0], 1 / config.inter_temperature)["loss"]
        intra = sum(contrast(*half.embeddings, 1 / config.intra_temperature)["loss"] for half in (audio_half, video_half)) / 2
        loss = audio_loss + video_loss + config.inter_weight * inter + config.intra_weight * intra
        parts = {"loss_audio": audio_loss, "loss_video": video_loss, "loss_inter": inter, "loss_intra": intra}
        return {"loss": loss, **{name: torch.as_tensor(part).detach() for name, part in parts.items()}}


class AudioVisualSettings(ObjectiveSettings):
    """Fine-tuning. The defaults are those of AudioSet's balanced clips."""

    kind: Literal["audio_visual"] = "audio_visual"
    time_mask: float = Field(default=0.2, ge=0, lt=1)
    mel_mask: float = Field(default=0.2, ge=0, lt=1)
    video_mask: float = Field(default=0.0, ge=0, lt=1)
    """Shares of times, of mel bins and of the video's patches that training removes."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of clips with one label."""

    def build(self, model: nn.Module, context: ObjectiveContext) -> MAViLFinetuneObjective:
        return MAViLFinetuneObjective(require_model(self.kind, model, MAViL), self)


class MAViLFinetuneObjective(nn.Module):
    """Batch: `spectrogram` and `clip` as above, `spectrogram` alone for a model that only hears; `label` int64 (B,), or `labels`
    (B, classes) in 0..1.

    Models without fusion blocks classify sound and video apart: their losses are added.
    """

    def __init__(self, model: MAViL, settings: AudioVisualSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config, draw = self.model.config, batch["draw"]
        (times, bins), patches = config.audio_grid, config.video_patches
        noise = (random_draws.uniform(draw, (count,), name) for name, count in (("times", times), ("mel bins", bins), ("video", patches)))
        clip = require_tensor(batch, "clip") if config.sees else None
        return self.losses(require_tensor(batch, "spectrogram"), clip, labels_of(batch), *noise)

    def losses(
        self, audio: Tensor, clip: Tensor | None, labels: Tensor, time_noise: Tensor, mel_noise: Tensor, video_noise: Tensor
    ) -> dict[str, Tensor]:
        """Noise: (B, times), (B, mel bins) and (B, patches), uniform. clip: None for a model that only hears."""
        settings = self.settings
        audio_ids = keep_time_mel_grid(time_noise, mel_noise, settings.time_mask, settings.mel_mask)
        video_ids = Masking.from_noise(video_noise, int(video_noise.shape[1] * (1 - settings.video_mask))).ids_keep
        if self.model.config.fusion_depth:
            answers = [self.model(audio, clip, audio_ids_keep=audio_ids, video_ids_keep=video_ids)]
        else:
            answers = [self.model.forward_audio(audio, ids_keep=audio_ids)]
            if clip is not None:
                answers.append(self.model.forward_video(clip, ids_keep=video_ids))
        losses = [self._loss(answer.logits.float(), labels) for answer in answers]
        return {"loss": term_of_mean(torch.stack(losses).sum(), len(labels)), **self._right(answers[0].logits, labels)}

    def _right(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Share of the batch whose best label is right, by both or by what is heard, where there is one label each."""
        if self.model.config.multi_label or labels.dim() > 1:
            return {}
        return {"accuracy": term_of_mean((logits.detach().argmax(dim=1) == labels).float().mean(), len(labels))}

    def parameter_groups(self, settings: OptimiserSettings) -> list[ParameterGroup]:
        return layer_decay_groups(self.model, layer_decay=settings.layer_decay, weight_decay=settings.weight_decay)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        multi_label = self.model.config.multi_label
        targets = soft_targets(labels, self.model.config.classes, 0.0 if multi_label else self.settings.label_smoothing)
        return F.binary_cross_entropy_with_logits(logits, targets) if multi_label else F.cross_entropy(logits, targets)


def _teacher_of(file: Path, student: MAViLPretrainingConfig) -> MAViLPretraining:
    """Load a teacher of the student's size, without decoders, which it does not need. Raises ValueError."""
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"objective.teacher: {file} cannot be read ({error})") from error
    teacher = MAViLPretraining(replace(student, predict_features=False, decoder_depth=1))
    shapes = {name: value.shape for name, value in teacher.state_dict().items() if "decoder_" not in name and "mask_token" not in name}
    wrong = [name for name, shape in shapes.items() if name not in weights or weights[name].shape != shape]
    if wrong:
        raise ValueError(f"objective.teacher: {file} has no weights of the student's size: {', '.join(wrong[:5])}")
    teacher.load_state_dict({name: weights[name] for name in shapes}, strict=False)
    return teacher
