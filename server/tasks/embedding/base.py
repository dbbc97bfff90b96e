"""The base of tasks whose bundles turn images and texts into vectors of one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.bundle import BundleSpec
from server.tasks import base
from server.tasks.base import Arrays, OptionsT, PlanT, Shapes
from server.tasks.classify.images import ImageTask, patches
from server.tasks.embedding import text_jobs
from server.tasks.options import InvalidOption


class VectorTask(
    ImageTask[OptionsT, PlanT],
    base.Plans[OptionsT, PlanT],
    base.SelectsBundles,
    base.ControlsBatching[PlanT],
    base.Counts,
    base.EchoesArrays,
    base.PresentsElsewhere[PlanT],
    base.OffersTensors[PlanT],
):
    """A task whose jobs hold either an image, with arguments, or texts."""

    echoed_arrays = text_jobs.ECHOED_ARRAYS
    unread_arrays = text_jobs.UNREAD_ARRAYS

    def bucket(self, plan: PlanT, spec: BundleSpec, shapes: Shapes) -> str:
        """Return the bucket. All jobs for vectors of images share batches, whatever their vectors are used for."""
        return text_jobs.bucket(shapes) if "utf8" in shapes else super().bucket(plan, spec, shapes)

    def arguments(self, plan: PlanT, shapes: Shapes) -> dict[str, Any]:
        return {} if "utf8" in shapes else self._image_arguments(plan)

    def _image_arguments(self, plan: PlanT) -> dict[str, Any]:
        raise NotImplementedError

    def progress_total(self, jobs: Sequence[Arrays]) -> tuple[int, str]:
        """Return the number of images, or of texts if there are no images."""
        images = sum("utf8" not in arrays for arrays in jobs)
        return (images, "images") if images else (sum(int(np.count_nonzero(arrays["lengths"])) for arrays in jobs), "texts")

    def weight(self, spec: BundleSpec, shapes: Shapes) -> float:
        """Return the weight by the number of tokens."""
        if "utf8" not in shapes or spec.text is None:
            return 1.0
        return text_jobs.tokens(shapes, spec.text) / patches(spec)

    def samples(self, spec: BundleSpec) -> Sequence[Arrays]:
        return (*super().samples(spec), *(() if spec.text is None else text_jobs.pack_texts(["a dog"])))


def image_arguments(schedule: Sequence[int], pool: str = "", output: str = "pooled") -> dict[str, Any]:
    return {"merge": list(schedule)} | ({"pool": pool} if pool else {}) | ({"output": output} if output != "pooled" else {})


def image_bound(spec: BundleSpec, output: str = "pooled") -> int:
    """Bound the vector (dim,) and tokens (2,); or vectors (T, dim), sizes (T,) and owners (patches,)."""
    dim = spec.embedding_dim
    if output == "pooled":
        return 4 * dim + 8
    return patches(spec) * (4 * dim + 8) + 8


def need_tokenizer(spec: BundleSpec, field: str) -> None:
    """Raise InvalidOption for a pair that cannot read texts."""
    if spec.text is None:
        raise InvalidOption(
            field,
            f"{spec.id} has no tokenizer and takes images alone; `opsin bundles tokenizer {spec.name} FILE` and a restart give it one",
        )
