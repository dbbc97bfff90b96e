"""Vectors by the client from the real service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import read
from models.loading import load
from opsin import AsyncClient, Client, Embeddings, Refused
from opsin.image_encoding import png
from server.worker.loaded_bundles import UNLOAD_GRACE_S
from tests.opsin.embedding.conftest import MAX_BODY, MAX_IMAGES
from tests.support.bundles.vit import TINY, write_tiny_encoder
from tests.support.live_service import Service
from tests.support.waiting import eventually

MANY = 2 * MAX_IMAGES + 3
SIDE = TINY.image_size


def image(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    """Noise, at the bundle's size by default: resizing changes nothing."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


IMAGES = [image(seed) for seed in range(MANY)]
WORDS = [f"{first}{second} dog" for first in "abcdefghijklmnopqr" for second in "abcdefghijklmnopqr"][:300]


@pytest.fixture
def client(embedding_service: Service) -> Iterator[Client]:
    with Client(embedding_service.url) as opened:
        yield opened


def test_vectors_are_those_of_the_model(client: Client, embedding_bundles: Path) -> None:
    found = client.embed(IMAGES, model="encoder")
    expected = load(read(embedding_bundles / "encoder/1")).forward({"pixels": np.stack(IMAGES)}, {})["embedding"]
    np.testing.assert_allclose(found.vectors, expected, atol=2e-6)  # float32 in batches of other sizes
    assert (found.kind, found.model, found.version, found.dim, len(found), found.truncated) == ("image", "encoder", "1", 32, MANY, 0)
    assert np.asarray(found).dtype == np.float32 and np.asarray(found) is found.vectors


def test_images_beyond_request_limit_are_several_requests(client: Client, embedding_service: Service) -> None:
    files = [("image", (f"{index}", png(one))) for index, one in enumerate(IMAGES)]
    assert httpx2.post(f"{embedding_service.url}/v1/embed", files=files).status_code == 413
    joint = client.embed(IMAGES)
    alone = [client.embed(one).vectors[0] for one in IMAGES]
    np.testing.assert_allclose(joint.vectors, alone, atol=2e-6)


def test_bytes_beyond_request_limit_are_several_requests(client: Client) -> None:
    large = [image(seed, side=140) for seed in range(3)]
    sizes = [len(png(one)) for one in large]
    assert max(sizes) < MAX_BODY < sum(sizes)
    assert len(client.embed(large)) == 3


def test_texts_beyond_request_limit_are_several_requests(client: Client) -> None:
    found = client.embed(texts=[*WORDS, "w" * 99])
    assert (found.kind, len(found), found.truncated) == ("text", 301, 1)
    for place in (0, 255, 256, 299):
        np.testing.assert_allclose(found.vectors[place], client.embed(texts=WORDS[place]).vectors[0], atol=2e-6)


def test_an_error_names_the_image_or_text_by_its_place_among_all(client: Client) -> None:
    with pytest.raises(Refused) as raised:
        client.embed([*IMAGES[:6], b"no image"])
    assert (raised.value.status, raised.value.field) == (415, "image[6]")
    assert "image[6]: " in str(raised.value)
    with pytest.raises(Refused) as raised:
        client.embed([*IMAGES[:MAX_IMAGES], b"no image"])  # alone in its request
    assert raised.value.field == f"image[{MAX_IMAGES}]"
    with pytest.raises(Refused) as raised:
        client.embed(texts=[*WORDS[:270], " "])
    assert raised.value.field == "text[270]"


def test_tokens_are_merged_patches_with_their_sizes(client: Client) -> None:
    found = client.embed(IMAGES, model="encoder", output="tokens", merge=4)
    assert found.vectors.shape == (MANY, TINY.patches - 8, 32)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=2), 1, atol=1e-5)
    for sizes, owners in zip(found.sizes, found.owners, strict=True):
        assert np.bincount(owners, minlength=len(sizes)).tolist() == sizes.tolist()
    one = client.embed(IMAGES[-1], model="encoder", output="tokens", merge=4)
    np.testing.assert_allclose(found.vectors[-1], one.vectors[0], atol=1e-5)


def test_merging_and_pooling_are_options(client: Client) -> None:
    off, fast, mean = (client.embed(IMAGES[0], model="encoder", **options).vectors for options in ({}, {"merge": "fast"}, {"pool": "mean"}))
    assert np.abs(off - fast).max() > 1e-3 and np.abs(off - mean).max() > 1e-3


@pytest.mark.parametrize(
    ("requested", "status", "field"),
    [
        ({"images": IMAGES[0], "model": "nobody"}, 404, "model"),
        ({"images": IMAGES[0], "merge": "warp"}, 422, "merge"),
        ({"images": IMAGES[0], "pool": "max"}, 422, "pool"),
        ({"texts": "a dog", "model": "encoder"}, 422, "text"),
        ({"texts": ""}, 422, "text"),
        ({"texts": "w" * 99, "truncate": False}, 422, "text"),
        ({"texts": "a" * 2049}, 413, "text"),
    ],
)
def test_the_service_refuses_what_cannot_be_embedded(client: Client, requested: dict[str, Any], status: int, field: str) -> None:
    with pytest.raises(Refused) as raised:
        client.embed(**requested)
    assert (raised.value.status, raised.value.field) == (status, field)


@pytest.mark.parametrize(
    ("requested", "error", "reason"),
    [
        ({}, TypeError, "either images or texts"),
        ({"images": IMAGES[0], "texts": "a"}, TypeError, "either images or texts"),
        ({"images": []}, ValueError, "at least one"),
        ({"texts": []}, ValueError, "at least one"),
        ({"texts": ["a", "b\ud800"]}, ValueError, r"texts\[1\]: .* lone surrogate"),
        ({"texts": "a", "output": "tokens"}, ValueError, "is for images"),
        ({"images": IMAGES[0], "output": "patches"}, ValueError, "'pooled' or 'tokens'"),
        ({"images": IMAGES[0], "merg": 1}, TypeError, "no option 'merg'; the options are .*model, merge"),
    ],
)
def test_what_is_no_question_is_not_sent(requested: dict[str, Any], error: type[Exception], reason: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(error, match=reason):
        client.embed(**requested)


async def test_the_asynchronous_client_embeds_as_well(embedding_service: Service, client: Client) -> None:
    async with AsyncClient(embedding_service.url) as asynchronous:
        images, texts = await asynchronous.embed(IMAGES), await asynchronous.embed(texts=WORDS)
        tokens = await asynchronous.embed(IMAGES, model="encoder", output="tokens")
        with pytest.raises(Refused) as raised:
            await asynchronous.embed([*IMAGES[:6], b"no image"])
    np.testing.assert_allclose(images.vectors, client.embed(IMAGES).vectors, atol=2e-6)
    np.testing.assert_allclose(texts.vectors, client.embed(texts=WORDS).vectors, atol=2e-6)
    assert tokens.vectors.shape == (MANY, TINY.patches, 32)
    assert raised.value.field == "image[6]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, one in enumerate(IMAGES):
        (tmp_path / f"{index:02}.png").write_bytes(png(one))
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_map_embeds_a_folder(client: Client, folder: Path) -> None:
    outcomes = client.map("embed", folder, progress=False)
    np.testing.assert_allclose([found.vectors[0] for found in outcomes.results], client.embed(IMAGES).vectors, atol=2e-6)
    assert [one.source.name for one in outcomes.failures] == ["notes.txt"]
    assert "1 × 24 numbers" in outcomes._repr_html_()


def test_a_gallery_finds_the_nearest_images_by_text_and_by_image(client: Client, folder: Path) -> None:
    gallery = client.gallery(folder, progress=False)
    assert (len(gallery), [one.source.name for one in gallery.failures]) == (MANY, ["notes.txt"])
    cosines = client.embed(IMAGES).vectors @ client.embed(texts="a red dog").vectors[0]
    assert repr(gallery) == f"<Gallery: {MANY} images by pair@1, 1 failed>"
    found = gallery.search("a red dog", k=4)
    assert [match.path for match in found] == [folder / f"{index:02}.png" for index in np.argsort(-cosines)[:4]]
    np.testing.assert_allclose([match.cosine for match in found], np.sort(cosines)[::-1][:4], atol=5e-6)
    alike = gallery.search(image=IMAGES[5], k=1)
    assert (alike[0].path.name, alike[0].cosine) == ("05.png", pytest.approx(1, abs=1e-5))
    assert len(gallery.search("a dog", k=100)) == MANY


async def test_an_asynchronous_gallery_finds_the_same(embedding_service: Service, client: Client, folder: Path) -> None:
    async with AsyncClient(embedding_service.url) as asynchronous:
        gallery = await asynchronous.gallery(folder, progress=False)
        found = await gallery.search("a red dog", k=4)
    assert [match.path for match in found] == [match.path for match in client.gallery(folder, progress=False).search("a red dog", k=4)]


def test_galleries_ask_one_thing_at_a_time(client: Client, folder: Path) -> None:
    gallery = client.gallery(folder, progress=False, pattern="00.png")
    for requested in ({}, {"text": "a", "image": IMAGES[0]}):
        with pytest.raises(TypeError, match="either a text or an image"):
            gallery.search(**requested)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k: 0"):
        gallery.search("a", k=0)
    with pytest.raises(Refused, match="not an image"):
        client.gallery(folder, progress=False, pattern="*.txt")


def test_gallery_refuses_vectors_of_other_bundle_content(
    embedding_service: Service, embedding_bundles: Path, client: Client, folder: Path
) -> None:
    gallery = client.gallery(folder, progress=False, pattern="*.png", model="changing")
    assert gallery.search(image=IMAGES[3], k=1)[0].path.name == "03.png"
    made = write_tiny_encoder(embedding_bundles, "changing", seed=1, overwrite=True)

    def reloaded() -> bool:
        httpx2.post(f"{embedding_service.url}/v2/repository/models/changing/unload").raise_for_status()
        time.sleep(2 * UNLOAD_GRACE_S)  # the worker runs for so long what was sent before
        httpx2.post(f"{embedding_service.url}/v2/repository/models/changing/load", timeout=60).raise_for_status()
        return client.model("changing").digest == made.spec.digest()

    eventually(reloaded, "the other content is served")
    with pytest.raises(Refused, match="embed the files again") as raised:
        gallery.search(image=IMAGES[3])
    assert (raised.value.status, raised.value.field) == (409, "model")


def test_vectors_are_shown(client: Client) -> None:
    found: Embeddings = client.embed(texts=["a", "b"])
    assert "2 vectors of texts, 24 numbers each, pair@1" in found._repr_html_()
    assert "3 numbers a token" not in client.embed(IMAGES[0], output="tokens")._repr_html_()
