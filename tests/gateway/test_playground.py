"""The pages `/` and `/status`: static files under a strict policy, which can be turned off."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from server import playground
from server.supervisor.private_valkey import PrivateValkey
from tests.support.gateway_process import Gateway, gateway_process, problem

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SOUNDS = {file.stem for file in playground.SAMPLES.glob("*.flac")}
MOVES = ("colosseum", "lake", "otters")
DRAWN = {
    *(f"{name}{kind}.png" for name in ("mug", "duck") for kind in ("", "-depth")),
    *(f"{name}.png" for name in ("figures", *SOUNDS, *MOVES)),
}
"""Samples that are not copies of images in the documentation."""
SUFFIXES = re.compile(r"(-mask|-depth)?\.png$")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}


@pytest.mark.parametrize("path", ["/", "/status", "/static/playground.js", "/static/tasks/classify/tab.js", "/static/samples/brazil.png"])
def test_pages_and_files_come_with_a_strict_policy(gateway: Gateway, path: str) -> None:
    response = gateway.http.get(path)
    assert response.status_code == 200
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert response.headers["x-content-type-options"] == "nosniff"
    suffix = Path(path).suffix or ".html"
    assert response.headers["content-type"].startswith(TYPES[suffix])


def test_files_that_have_not_changed_are_not_sent_again(gateway: Gateway) -> None:
    first = gateway.http.get("/static/playground.js")
    assert gateway.http.get("/static/playground.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_scripts_are_sent_compressed_and_ranges_of_them_are_not(gateway: Gateway) -> None:
    file = (playground.STATIC / "vendor" / "three.js").read_bytes()
    path, headers = "/static/vendor/three.js", {"Accept-Encoding": "gzip"}
    with gateway.http.stream("GET", path, headers=headers) as full:
        sent = b"".join(full.iter_raw())
    assert full.headers["content-encoding"] == "gzip"
    assert gzip.decompress(sent) == file
    assert len(sent) < len(file) / 3
    part = gateway.http.get(path, headers={**headers, "Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, file[10:20])
    assert "content-encoding" not in part.headers
    plain = gateway.http.get(path, headers={"Accept-Encoding": "identity"})
    assert plain.content == file
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize("path", ["/static/playground.js", "/static/samples/brazil.png"])
@pytest.mark.parametrize(("value", "status", "slug"), [("bytes=999999999-", 416, "invalid-range"), ("bytes=x-y", 400, "invalid-request")])
def test_ranges_that_no_file_has_are_problems(gateway: Gateway, path: str, value: str, status: int, slug: str) -> None:
    response = gateway.http.get(path, headers={"Range": value})
    document = problem(response, status, slug)
    assert document["field"] == "Range" and "bytes=FIRST-LAST" in str(document["detail"])
    assert response.headers.get("content-range", "").startswith("bytes */") == (status == 416)


def test_the_page_of_the_api_runs_its_own_scripts_alone(gateway: Gateway) -> None:
    response = gateway.http.get("/docs")
    policy = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    for address in re.findall(r'(?:src|href)="([^"]+)"', response.text):
        assert gateway.http.get(address).status_code == 200


@pytest.mark.parametrize("path", ["/static/", "/static/nothing.js", "/static/%2e%2e/__init__.py", "/static/../../settings.py"])
def test_only_the_files_are_served(gateway: Gateway, path: str) -> None:
    response = gateway.http.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_without_the_playground_its_pages_are_not_there(valkey: PrivateValkey) -> None:
    with gateway_process(valkey.url, playground=False) as gateway:
        assert [gateway.http.get(path).status_code for path in ("/", "/status", "/static/playground.js")] == [404] * 3
        assert gateway.http.get("/v1/status").status_code == 200
        assert gateway.http.get("/docs/static/swagger-ui-bundle.js").status_code == 200


def test_samples_are_the_documented_pictures() -> None:
    samples = sorted(playground.SAMPLES.glob("*.png"))
    sources = (playground.SAMPLES / "SOURCES.txt").read_text()
    originals = {picture.name: picture.read_bytes() for folder in ("flags", "drawings") for picture in (PICTURES / folder).glob("*.png")}
    assert samples
    found = [sample.name for sample in samples if sample.name in originals or sample.name in DRAWN]
    assert found == [sample.name for sample in samples]
    assert [sample.name for sample in samples if sample.name not in DRAWN and sample.read_bytes() != originals[sample.name]] == []
    assert [sample.name for sample in samples if SUFFIXES.sub("", sample.name) not in sources] == []


def test_every_sound_has_a_source_and_a_picture() -> None:
    sources = (playground.SAMPLES / "SOURCES.txt").read_text()
    assert SOUNDS and [name for name in SOUNDS if f"{name}.flac" not in sources or not (playground.SAMPLES / f"{name}.png").is_file()] == []


@pytest.mark.parametrize("name", MOVES)
def test_camera_clips_last_two_seconds_and_match_thumbnails(name: str) -> None:
    with av.open(playground.SAMPLES / f"{name}.mp4") as clip, Image.open(playground.SAMPLES / f"{name}.png") as thumbnail:
        frames = [frame.to_image() for frame in clip.decode(video=0)]
        assert len(frames) / float(clip.streams.video[0].average_rate or 0) > 2
        middle = frames[len(frames) // 2].resize(thumbnail.size)
        assert np.abs(np.asarray(middle, int) - np.asarray(thumbnail.convert("RGB"), int)).mean() < 16


VENDORED = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
    "swagger-ui.png": "3ed612f41e050ca5e7000cad6f1cbe7e7da39f65fca99c02e99e6591056e5837",
    "three.js": "e977a9e852cca2fb3d08a5df6847acf5b9f386af4def4bfca3c409df3dc24f1e",
}
"""SHA-256 of files of others. `server/playground/vendor/build.sh` makes other ones: then write their digests here."""


@pytest.mark.parametrize("name", VENDORED)
def test_files_of_others_are_those_that_were_built(name: str) -> None:
    assert hashlib.sha256((playground.STATIC / "vendor" / name).read_bytes()).hexdigest() == VENDORED[name]


@pytest.mark.parametrize(
    ("name", "licence"), [("three", "MIT"), ("swagger-ui", "Apache License"), ("swagger-ui", "SmartBear"), ("swagger-ui-bundle.js", "MIT")]
)
def test_files_of_others_have_their_licence_next_to_them(name: str, licence: str) -> None:
    assert licence in (playground.STATIC / "vendor" / f"{name}.LICENSE.txt").read_text()


def test_no_redirect_goes_to_a_host_that_a_client_names(gateway: Gateway) -> None:
    for path in ("/status/", "/v1/models/", "/docs/"):
        answer = gateway.http.get(path, headers={"Host": "evil.example"}, follow_redirects=False)
        assert (answer.status_code, answer.headers.get("location")) == (404, None), path


def test_the_playground_has_no_circle_of_imports() -> None:
    files = [file for file in playground.STATIC.rglob("*.js") if "vendor" not in file.parts]
    imported = {
        file: {(file.parent / path).resolve() for path in re.findall(r'(?:from|import)\s*\(?\s*"(\.[^"]+)"', file.read_text())}
        for file in files
    }
    left = dict(imported)
    while ready := [file for file, others in left.items() if not others & left.keys()]:
        for file in ready:
            del left[file]
    assert left == {} and len(imported) > 30
