"""Bundles with predictable vectors, and a worker that answers with them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleSpec
from models.bundle_schema import FileDigest, Preprocess, TextSpec
from server.queue.messages import Array, Failure, QueuedJob, Reply, WorkerTiming

DIM = 4
TOKENS = 17
MAX_TEXT_BYTES = 64
"""Longer texts lose their end."""
BROKEN = "break the model"
"""A text on which the model fails; so it does on images as green as `tests.support.fake_worker.unbearable`."""
_WEIGHTS = FileDigest(sha256="0" * 64, bytes=1)


def make_pair(name: str = "words", *, reads_texts: bool = True) -> BundleSpec:
    return BundleSpec(
        name=name,
        version="1",
        task="zero-shot",
        architecture="cit",
        config={"joint_width": DIM, "patch_size": 4, "depth": 2},
        preprocess=Preprocess(image_size=8, short_side=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        text=TextSpec(length=77, scale=100.0) if reads_texts else None,
        license="CC0-1.0",
        weights=_WEIGHTS,
        files={"tokenizer.json": _WEIGHTS} if reads_texts else {},
    )


def make_encoder(name: str = "encoder") -> BundleSpec:
    """Write an encoder of images alone."""
    return BundleSpec(
        name=name,
        version="1",
        task="embed",
        architecture="vit",
        config={"width": DIM, "patch_size": 4, "depth": 2},
        preprocess=Preprocess(image_size=8, short_side=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        license="CC0-1.0",
        weights=_WEIGHTS,
    )


def unit(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def color_vector(red: float, green: float, blue: float) -> NDArray[np.float32]:
    """Return the vector of an image of one colour."""
    return unit(np.array([red, green, blue, 255.0]))


def text_vector(text: str) -> NDArray[np.float32]:
    return unit(np.frombuffer(hashlib.sha256(text.encode()).digest()[:DIM], np.uint8) - 127.5)


def answer(job: QueuedJob) -> Reply:
    try:
        arrays = _embed_texts(job) if "utf8" in job.arrays else _embed_image(job)
    except ValueError as error:
        return Reply(id=job.id, worker="test", failure=Failure(kind="model-error", detail=str(error)))
    return Reply(
        id=job.id,
        worker="test",
        arrays={name: Array.from_numpy(array) for name, array in arrays.items()},
        timing=WorkerTiming(batch_wait_ms=0.5, inference_ms=1.5, worker_ms=2.0, batch_size=1),
    )


def _embed_image(job: QueuedJob) -> dict[str, NDArray[np.generic]]:
    red, green, blue = job.arrays["pixels"].to_numpy().reshape(-1, 3).mean(axis=0)
    if green > 200:
        raise ValueError("the model does not like this image")
    return {"embedding": color_vector(red, green, blue), "tokens": np.array([TOKENS, TOKENS], np.int32)}


def _embed_texts(job: QueuedJob) -> dict[str, NDArray[np.generic]]:
    utf8, lengths = (job.arrays[name].to_numpy() for name in ("utf8", "lengths"))
    texts = [row[:length].tobytes().decode() for row, length in zip(utf8, lengths, strict=True)]
    if BROKEN in texts:
        raise ValueError("the model does not like this text")
    vectors = np.zeros((len(texts), DIM), np.float32)
    for row in np.flatnonzero(lengths):
        vectors[row] = text_vector(texts[row])
    return {"embedding": vectors, "truncated": lengths > MAX_TEXT_BYTES, "text_tokens": lengths}
