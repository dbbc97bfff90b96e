"""Everything that is measured of a finished model of flags: by source, merged and unmerged, and against what it must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator

from models.merge_schedule import MergeSchedule
from models.spec import Preprocess
from models.vit.model import ViT
from training.data import pictures
from training.data.pictures import Pixels
from training.evaluation import baselines, metrics
from training.evaluation.baselines import Labels
from training.evaluation.metrics import Measured, Right
from training.evaluation.settings import LadderSettings
from training.starters.images import distortions, flags
from training.starters.images.flags import Corpus, Drawings, Flags, Gallery

NEAREST = "nearest neighbour"
LOGISTIC = "logistic regression"
_BASELINE_RENDERINGS = 4
_VAL_RENDERINGS = 20


@dataclass(frozen=True)
class Task:
    """Task of a model of flags."""

    flags: Flags
    preprocess: Preprocess
    ladder: LadderSettings
    seed: int


@dataclass(frozen=True)
class Pictures:
    """Test or validation pictures of one source."""

    name: str
    pixels: Pixels
    labels: Labels
    thumbnails: Pixels
    """Pictures for the baselines: of a clean one the flag alone, cut out for them; of a distorted one the whole."""


@dataclass(frozen=True)
class Comparison:
    """A baseline's accuracy, and by how much the model beats it."""

    accuracy: Measured
    gain: Measured


@dataclass(frozen=True)
class Source:
    """How the model does on one source's pictures."""

    name: str
    top1: Measured
    top5: Measured
    calibration_error: float
    rivals: Mapping[str, Comparison]


@dataclass(frozen=True)
class LookAlikes:
    """Flags that differ little, on the clean pictures of all sources."""

    labels: tuple[str, ...]
    n: int
    right: int
    within: int
    """Predictions that are right or one of the others."""


@dataclass(frozen=True)
class MeasuredRung:
    name: str
    schedule: MergeSchedule
    tokens_out: int
    throughput: float
    val: Measured
    clean: Measured
    clean_drop: Measured
    """Accuracy with merging off minus with this rung."""
    distorted: Measured
    distorted_drop: Measured


@dataclass(frozen=True)
class Report:
    val: Measured
    clean: Measured
    """Accuracy on all clean test pictures but those that the recipe excludes."""
    distorted: Measured
    sources: tuple[Source, ...]
    look_alikes: tuple[LookAlikes, ...]
    pretraining: Mapping[str, Comparison]
    """"clean" and "distorted" → the short run without pre-training, against the one with it."""
    ladder: tuple[MeasuredRung, ...]
    default: MeasuredRung | None
    """The most accurate on validation pictures among the rungs that are fast enough."""


def validation(task: Task, corpus: Corpus) -> Pictures:
    """Renderings, clean and distorted, of artwork that was not trained on."""
    return _rendered("validation", corpus.val, task, _VAL_RENDERINGS, task.flags.clean)


def temperature(task: Task, corpus: Corpus, model: ViT) -> float:
    """The temperature of the model's logits that fits validation pictures best."""
    val = validation(task, corpus)
    return metrics.fit_temperature(_logits(task, model, val), val.labels)


def evaluated_on(task: Task, corpus: Corpus) -> list[Pictures]:
    """All pictures that a model is evaluated on: those of validation, and each source's clean and distorted."""
    return [validation(task, corpus), *_cleans(task, corpus), *_distorted(task, corpus)]


def measure(task: Task, corpus: Corpus, model: ViT, short: ViT, scratch: ViT) -> Report:
    """short, scratch: the comparison, with and without pre-training."""
    clean, unfiltered, distorted = _cleans(task, corpus), _clean(corpus.unfiltered, task), _distorted(task, corpus)
    all_clean, all_distorted = _pool("all, clean", clean), _pool("all, distorted", distorted)
    val = validation(task, corpus)
    rivals = _rivals(task, corpus, val)
    off = MergeSchedule.off()

    def right(network: ViT, asked: Pictures, schedule: MergeSchedule = off) -> Right:
        return np.asarray(_logits(task, network, asked, schedule).argmax(axis=1) == asked.labels)

    unmerged = {asked.name: right(model, asked) for asked in (all_clean, all_distorted)}
    ladder = []
    schedules = {rung.name: MergeSchedule.parse(rung.schedule) for rung in task.ladder.rungs}
    speed = metrics.relative_throughput(model, schedules, batch_size=task.ladder.batch_size, rounds=task.ladder.rounds)
    for name, schedule in schedules.items():
        merged = {asked.name: right(model, asked, schedule) for asked in (all_clean, all_distorted)}
        drops = {asked: metrics.difference(unmerged[asked], merged[asked]) for asked in unmerged}
        ladder.append(
            MeasuredRung(
                name,
                schedule,
                tokens_out=schedule.token_counts(model.config.patches + 1, model.config.depth, protected=1)[-1],
                throughput=speed[name],
                val=metrics.accuracy(right(model, val, schedule)),
                clean=metrics.accuracy(merged[all_clean.name]),
                clean_drop=drops[all_clean.name],
                distorted=metrics.accuracy(merged[all_distorted.name]),
                distorted_drop=drops[all_distorted.name],
            )
        )
    fast = [rung for rung in ladder if rung.throughput >= task.ladder.min_throughput]
    return Report(
        val=metrics.accuracy(right(model, val)),
        clean=metrics.accuracy(unmerged[all_clean.name]),
        distorted=metrics.accuracy(unmerged[all_distorted.name]),
        sources=tuple(
            _source(_logits(task, model, asked), asked, rivals) for asked in (*clean, unfiltered, *distorted, all_clean, all_distorted)
        ),
        look_alikes=_look_alikes(task, _logits(task, model, all_clean), all_clean.labels),
        pretraining={
            kind: Comparison(metrics.accuracy(right(scratch, asked)), metrics.difference(right(short, asked), right(scratch, asked)))
            for kind, asked in (("clean", all_clean), ("distorted", all_distorted))
        },
        ladder=tuple(ladder),
        default=max(fast, key=lambda rung: (rung.val.value, rung.throughput), default=None),
    )


def _source(logits: npt.NDArray[np.float32], asked: Pictures, rivals: Mapping[str, Callable[[Pixels], Labels]]) -> Source:
    right = np.equal(logits.argmax(axis=1), asked.labels)
    predicted = {name: np.equal(predict(asked.thumbnails), asked.labels) for name, predict in rivals.items()}
    return Source(
        asked.name,
        top1=metrics.accuracy(right),
        top5=metrics.accuracy(metrics.top_k(logits, asked.labels, 5)),
        calibration_error=metrics.calibration_error(logits, asked.labels),
        rivals={name: Comparison(metrics.accuracy(r), metrics.difference(right, r)) for name, r in predicted.items()},
    )


def _rivals(task: Task, corpus: Corpus, val: Pictures) -> dict[str, Callable[[Pixels], Labels]]:
    known, labels = _on_white(corpus.train), corpus.train.targets.numpy()
    rendered = _rendered("training", corpus.train, task, _BASELINE_RENDERINGS, task.flags.clean)
    logistic = baselines.LogisticPixels(rendered.pixels, rendered.labels, val.pixels, val.labels)
    return {NEAREST: lambda asked: baselines.nearest_neighbour(known, labels, asked), LOGISTIC: logistic.predict}


def _look_alikes(task: Task, logits: npt.NDArray[np.float32], labels: Labels) -> tuple[LookAlikes, ...]:
    codes = list(task.flags.labels)
    predicted = logits.argmax(axis=1)
    rows = []
    for group in task.flags.look_alikes:
        members = [codes.index(code) for code in group]
        asked = np.isin(labels, members)
        names = tuple(task.flags.labels[code] for code in group)
        right, within = predicted[asked] == labels[asked], np.isin(predicted[asked], members)
        rows.append(LookAlikes(names, int(asked.sum()), int(right.sum()), int(within.sum())))
    return tuple(rows)


def _logits(task: Task, model: ViT, asked: Pictures, schedule: MergeSchedule | None = None) -> npt.NDArray[np.float32]:
    return metrics.logits(model, asked.pixels, task.preprocess, schedule or MergeSchedule.off())


def _cleans(task: Task, corpus: Corpus) -> list[Pictures]:
    return [_clean(gallery, task) for gallery in corpus.galleries]


def _distorted(task: Task, corpus: Corpus) -> list[Pictures]:
    return [_rendered(f"{gallery.name}, distorted", flags.cut_out(gallery, task.flags.side), task, 1, 0.0) for gallery in corpus.galleries]


def _clean(gallery: Gallery, task: Task) -> Pictures:
    pixels = pictures.load(gallery.paths, task.preprocess)
    return Pictures(gallery.name, pixels, np.array(gallery.targets), _on_white(flags.cut_out(gallery, task.flags.side)))


def _rendered(name: str, drawings: Drawings, task: Task, renderings: int, clean: float) -> Pictures:
    artwork = drawings.artwork.repeat(renderings, 1, 1, 1)
    rendered = distortions.render(artwork, task.preprocess.image_size, Generator().manual_seed(task.seed), clean)
    pixels = rendered.permute(0, 2, 3, 1).contiguous().numpy()
    return Pictures(name, pixels, drawings.targets.repeat(renderings).numpy(), pixels)


def _on_white(drawings: Drawings) -> Pixels:
    """(N, T, T, 3)."""
    artwork = drawings.artwork.float()
    colours, alpha = artwork[:, :3], artwork[:, 3:] / 255
    return np.asarray((colours * alpha + 255 * (1 - alpha)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())


def _pool(name: str, parts: Sequence[Pictures]) -> Pictures:
    return Pictures(
        name,
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.thumbnails for part in parts]),
    )
