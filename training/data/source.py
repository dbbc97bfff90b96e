"""The contract of data with the loop: a source of samples by index.

A sample is a dict of tensors without a batch dimension. The keys say what they hold, whatever the source:

| key | content |
|---|---|
| `pixels` | image, normalised, float32 (3, S, S) |
| `clip` | video, normalised, float32 (3, T, S, S) |
| `spectrogram` | log-mel filter bank, normalised, float32 (1, frames, bins) |
| `points`, `valid` | point seen in each pixel of a map, float32 (n, n, 3), and whether there is one, bool (n, n) |
| `surface`, `colours` | true points of a scene and their colours in 0..1, float32 (G, 3) each |
| `back`, `back_colours` | last point on the ray of each pixel that is seen, and its colour in 0..1, float32 (n, n, 3) each |
| `label`, `labels` | class, int64 (); several classes, float32 (classes,) |
| `words` | token ids of a caption, int64 (length,) |
| `pose`, `joints`, `appearance`, `detected`, `labelled`, `actions` | people of a clip (T, P, ·), as in `models.people.track_batch` |

The loop adds `draw`, int64 (), to every sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Field, field_validator
from torch import Tensor

from models.bundle_schema import Clip, Preprocess, Sound
from training.errors import DataError
from training.recipe_settings import RecipeSettings

Sample = Mapping[str, Tensor]


class UnreadableSample(Exception):
    """One sample cannot be read; the message names its file and the reason. The loop takes the next one, and counts."""


AreaShare = Annotated[float, Field(gt=0, le=1)]


class Augment(RecipeSettings):
    """Augmentations of an image before it is normalised. The defaults are those of MAE's pre-training."""

    crop_scale: tuple[AreaShare, AreaShare] | None = (0.2, 1.0)
    """Share of the image's area that a random crop has; None: as the service prepares images."""
    flip: bool = True
    rand_augment: str | None = None
    """timm's notation, such as `rand-m9-mstd0.5-inc1`."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle is filled with noise."""

    @field_validator("rand_augment")
    @classmethod
    def _check_rand_augment(cls, value: str | None) -> str | None:
        if value:
            from timm.data.auto_augment import rand_augment_transform  # takes seconds

            try:
                rand_augment_transform(value, {})
            except (AssertionError, LookupError, ValueError) as error:
                raise ValueError(f"{value!r} is not in timm's notation, such as rand-m9-mstd0.5-inc1") from error
        return value


class DataSettings(RecipeSettings, ABC):
    """Settings of a kind of data: `data` of a recipe."""

    kind: str
    """A short name of the kind, which runs record. A class without one has the `package.module:NAME` by which recipes name it."""

    @abstractmethod
    def open(self, preparation: SamplePreparation) -> SampleSource:
        """Open the data. Raises DataError."""


@dataclass(frozen=True)
class SamplePreparation:
    """Settings that turn samples into inputs of a network."""

    preprocess: Preprocess | None = None
    clip: Clip | None = None
    sound: Sound | None = None
    augment: Augment = field(default_factory=Augment)
    words: int = 0
    """Token ids of a caption."""
    cache: Path = Path(".cache/data")

    def require_preprocess(self) -> Preprocess:
        """Return the preprocessing of images. Raises DataError if the recipe has none."""
        if self.preprocess is None:
            raise DataError("preprocess: the recipe does not say how images are prepared (image_size, mean, std, …)")
        return self.preprocess

    def require_sound(self) -> Sound:
        """Return the settings of spectrograms. Raises DataError if the recipe has none."""
        if self.sound is None:
            raise DataError("sound: the recipe does not say how sound becomes a spectrogram (frames, mel_bins, mean, std)")
        return self.sound


class SampleSource(Protocol):
    """One of images with captions has an attribute `captions` besides (`training.curation.Captions`)."""

    @property
    def unit(self) -> str:
        """Plural noun for one sample, as in "images/s"."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; empty without labels."""

    def __len__(self) -> int: ...

    def identity(self) -> Mapping[str, Any]:
        """JSON that changes if the content does: a resumed run is refused then."""

    def sample(self, index: int, draw: int) -> Sample:
        """Read a sample, which depends only on the arguments, in any process. Raises UnreadableSample."""


@runtime_checkable
class Sharded(Protocol):
    """A source whose neighbours are cheap to read one after another."""

    @property
    def shards(self) -> Sequence[range]:
        """Indices of each shard; an epoch shuffles shards, and samples among a few shards at a time."""
