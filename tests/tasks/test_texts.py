"""Texts become jobs by length, and their vectors come back in the order of the request."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from models.bundle_schema import TextSpec
from server.tasks.embedding import vector_jobs


def outputs(jobs: list[Any], cut: str = "") -> list[dict[str, Any]]:
    """Return the answers of a network that writes each text's length and first byte."""
    answered = []
    for job in jobs:
        embedding = np.stack([job["lengths"], job["utf8"][:, 0]], axis=1).astype(np.float32)
        read = [row[:length].tobytes().decode() for row, length in zip(job["utf8"], job["lengths"], strict=True)]
        answered.append({"embedding": embedding, "truncated": np.array([text == cut for text in read]), **job})
    return answered


def test_vectors_come_back_in_the_order_of_the_texts() -> None:
    texts = ["z" * (1 + 37 * number % 3000) for number in range(200)] + ["ä", "a" * 16, "a" * 17, "né"]
    jobs = vector_jobs.pack_texts(texts)
    found = vector_jobs.vectors(outputs(jobs, cut="né"))
    assert sorted(found) == list(range(len(texts)))
    assert [tuple(found[place][0]) for place in range(len(texts))] == [(len(text.encode()), text.encode()[0]) for text in texts]
    assert [place for place in found if found[place][1]] == [203]


def test_texts_of_about_one_length_lie_together() -> None:
    widths = {tuple(job["utf8"].shape) for job in vector_jobs.pack_texts(["a", "b" * 16, "c" * 17, "d" * 33, "e" * 8000])}
    assert widths == {(4, 16), (1, 32), (1, 64), (1, 8192)}
    many = vector_jobs.pack_texts(["a"] * 130)
    assert [job["utf8"].shape for job in many] == [(64, 16), (64, 16), (4, 16)]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 16, 17, 64])
def test_places_beyond_the_texts_are_empty(count: int) -> None:
    (job,) = vector_jobs.pack_texts(["word"] * count, places=range(7, 7 + count))
    assert (job["lengths"] > 0).sum() == count and job["places"][:count].tolist() == list(range(7, 7 + count))
    assert vector_jobs.bucket({name: array.shape for name, array in job.items()}) == f"text:{len(job['lengths'])}x16"
    assert sorted(vector_jobs.vectors(outputs([job]))) == list(range(7, 7 + count))


@pytest.mark.parametrize(
    ("padding", "width", "tokens"),
    [("longest", 16, 4), ("longest", 64, 16), ("longest", 8192, 32), ("length", 16, 32), ("length", 8192, 32)],
)
def test_a_job_costs_what_the_network_reads(padding: Literal["longest", "length"], width: int, tokens: int) -> None:
    """Long texts lose their end, and FLIP's short ones are filled up."""
    text = TextSpec(length=32, scale=1.0, padding=padding)
    assert vector_jobs.tokens({"utf8": (16, width), "lengths": (16,)}, text) == 16 * tokens
