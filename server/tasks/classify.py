"""Image → labels. Input: uint8 (S, S, 3) at the bundle's size. Output: logits (classes,) and the token counts (in, out)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.merge_schedule import MergeSchedule
from server.media import images

MAX_MERGED = 65_536
"""An r beyond this merges no more than this one: no block has that many tokens."""

Inputs = dict[str, NDArray[Any]]
Outputs = Mapping[str, NDArray[Any]]


class InvalidOption(ValueError):
    """An option that the bundle cannot satisfy; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Plan:
    """How a request's tokens are merged: r of every block, and the rung that says so, if one does."""

    rung: str | None
    schedule: tuple[int, ...]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the forward call."""
        return {"merge": list(self.schedule)}


class Prediction(msgspec.Struct, frozen=True):
    """One label; `score` is its softmax probability."""

    label: str
    index: int
    score: float


class Merging(msgspec.Struct, frozen=True):
    """How tokens were merged: `rung` is null unless one was used, `schedule` is r of every block, token counts include special tokens."""

    rung: str | None
    schedule: tuple[int, ...]
    tokens_in: int
    tokens_out: int


class Classification(msgspec.Struct, frozen=True):
    """The best labels of one image, best first."""

    predictions: list[Prediction]
    merging: Merging


class Classify:
    """The task `classify`, as pure functions of a request and a bundle's spec."""

    name = "classify"

    @staticmethod
    def plan(merge: str | None, spec: BundleSpec) -> Plan:
        """`off`, an integer of at least 0 or a rung's name; None is the bundle's default rung, or off. Raises InvalidOption."""
        depth = int(spec.config.get("depth", 1))
        name = spec.default_rung if merge is None else merge
        if name is None or name in ("off", "0"):
            return Plan(None, (0,) * depth)
        if not spec.merges:
            raise InvalidOption("merge", f"{name!r}: the tokens of {spec.id} do not merge; use `off`")
        rung = spec.rung(name)
        if rung is not None:
            return Plan(rung.name, tuple(max(r, 0) for r in rung.merge.expand(depth)))
        if name.isascii() and name.isdigit() and len(name) <= 5 and int(name) <= MAX_MERGED:
            return Plan(None, MergeSchedule.constant(int(name)).expand(depth))
        rungs = ", ".join(rung.name for rung in spec.ladder) or "none"
        raise InvalidOption("merge", f"{name!r}: use `off`, an integer from 0 to {MAX_MERGED} or a rung of {spec.id} ({rungs})")

    @staticmethod
    def check_top_k(top_k: int, spec: BundleSpec) -> None:
        """Raises InvalidOption."""
        if not 1 <= top_k <= len(spec.labels):
            raise InvalidOption("top_k", f"{top_k}: use an integer from 1 to {len(spec.labels)}, the number of classes of {spec.id}")

    @staticmethod
    def prepare(image: bytes, spec: BundleSpec, decoder: images.Decoder) -> Inputs:
        """An encoded image → `pixels` uint8 (S, S, 3). Raises images.ImageError."""
        with decoder.decoded(image) as picture:
            return {"pixels": images.to_model_size(picture, spec.pictures, decoder.max_pixels)}

    @staticmethod
    def bucket(plan: Plan, spec: BundleSpec) -> str:
        """What must agree inside a batch besides the bundle: the size of the pixels and the merge schedule."""
        return f"{spec.pictures.image_size}:{','.join(map(str, plan.schedule))}"

    @staticmethod
    def scores(outputs: Outputs) -> NDArray[np.float32]:
        """Softmax of the logits, (classes,)."""
        logits = outputs["logits"].astype(np.float64)
        powers = np.exp(logits - logits.max())
        scores: NDArray[np.float32] = (powers / powers.sum()).astype(np.float32)
        return scores

    @staticmethod
    def present(outputs: Outputs, plan: Plan, spec: BundleSpec, top_k: int) -> Classification:
        """The `top_k` best labels; equal scores in the order of the classes."""
        scores = Classify.scores(outputs)
        best = np.argsort(-scores, kind="stable")[:top_k]
        tokens_in, tokens_out = (int(count) for count in outputs["tokens"])
        return Classification(
            [Prediction(spec.labels[index], int(index), float(scores[index])) for index in best],
            Merging(plan.rung, plan.schedule, tokens_in, tokens_out),
        )
