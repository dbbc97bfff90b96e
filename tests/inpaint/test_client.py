"""The client and the command fill holes through a running service."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from opsin import AsyncClient, Client, Inpainting, Refused
from tests.support.images import box_mask, decode, encode, noise, outside
from tests.support.processes import opsin
from tests.support.task_clients import Painter

HOLE = (20, 10, 40, 26)
IMAGE = noise(40, 60)
MASK = box_mask(40, 60, HOLE)
KEPT = outside(40, 60, HOLE)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    file.write_bytes(encode(IMAGE))
    return file


def test_the_client_gives_pixels_and_says_how_they_came_about(painter: Painter, tmp_path: Path) -> None:
    with Client(painter.gateway.url) as client:
        filled = client.inpaint(np.asarray(IMAGE), MASK, steps=3, seed=7, samples=2, inject_known=False)
    assert isinstance(filled, Inpainting)
    assert (filled.width, filled.height, filled.masked_pixels, filled.steps, filled.sampler) == (60, 40, 320, 3, "ddim")
    assert (filled.seed, [sample.seed for sample in filled.samples]) == (7, [7, 8])
    assert filled.image.dtype == np.uint8 and np.array_equal(filled.image[KEPT], np.asarray(IMAGE)[KEPT])
    filled.save(tmp_path / "filled.png")
    assert np.array_equal(decode((tmp_path / "filled.png").read_bytes()), filled.image)


def test_masks_may_be_words_and_the_answer_may_come_later(painter: Painter, photo: Path) -> None:
    with Client(painter.gateway.url) as client:
        at_once = client.inpaint(photo, "box:20,10,20,16", steps=2, seed=1, deterministic=True)
        job = client.inpaint(photo, "box:20,10,20,16", wait=False, steps=2, seed=1, deterministic=True)
        events = list(job.events())
        assert np.array_equal(job.result().image, at_once.image)
    assert events[-1].name == "done"


async def test_the_asynchronous_client_does_the_same(painter: Painter, photo: Path) -> None:
    async with AsyncClient(painter.gateway.url) as client:
        filled = await client.inpaint(photo, MASK, steps=2, seed=1, deterministic=True)
        job = await client.inpaint(photo, MASK, wait=False, steps=2, seed=1, deterministic=True)
        assert np.array_equal((await job.result()).image, filled.image)


def test_what_is_refused_is_an_error_that_names_the_field(painter: Painter, photo: Path) -> None:
    with Client(painter.gateway.url) as client, pytest.raises(Refused) as caught:
        client.inpaint(photo, MASK, steps=0)
    assert (caught.value.status, caught.value.field) == (422, "steps")


def test_the_command_writes_the_filled_image(painter: Painter, photo: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    mask.write_bytes(MASK)
    output = tmp_path / "filled.png"
    ran = opsin("inpaint", photo, "--mask", mask, "-o", output, "--steps", "3", "--seed", "5", "--url", painter.gateway.url)
    assert ran.returncode == 0, ran.stderr
    assert np.array_equal(decode(output.read_bytes())[KEPT], np.asarray(IMAGE)[KEPT])
    assert ran.stdout.splitlines() == [f"{output}  seed 5", "320 of 2400 pixels filled in 3 steps of ddim"]


def test_the_command_draws_previews_on_a_terminal_with_colours(painter: Painter, photo: Path) -> None:
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "OPSIN_URL": painter.gateway.url}
    command = [sys.executable, "-m", "opsin", "inpaint", str(photo), "--mask", "center", "--steps", "1000"]
    with subprocess.Popen(command, cwd=photo.parent, env=environment, stdout=subprocess.DEVNULL, stderr=its) as ran:
        os.close(its)
        output = b""
        with suppress(OSError):  # the end of a terminal
            while part := os.read(ours, 65536):
                output += part
    os.close(ours)
    assert ran.returncode == 0
    assert output.count("▀".encode()) >= 48 and b"Filling" in output
    assert decode(photo.with_name("photo-filled.png").read_bytes()).shape == (40, 60, 3)


def test_command_writes_all_samples_and_json_to_working_folder(painter: Painter, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    options = ("--mask", "center", "--samples", "2", "--preset", "draft", "--json")
    ran = opsin("inpaint", photo, *options, folder=folder, OPSIN_URL=painter.gateway.url)
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    files = [f"photo-filled-{number}.png" for number in (1, 2)]
    assert [result["file"] for result in answer["results"]] == files
    assert answer["sampler"] == "one-step" and all(decode((folder / file).read_bytes()).shape == (40, 60, 3) for file in files)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--mask", "nothing.png"], 2, "--mask nothing.png: no such file; or use box:X,Y,W,H"),
        (["--timeout", "0"], 2, "--timeout: 0 seconds"),
        (["--mask", "box:0,0,99,99"], 1, "leaves the image of 60 × 40 pixels"),
        (["--sampler", "euler"], 1, "must be one of ddim, ancestral, one-step"),
        (["-o", "no/such/folder/filled.png"], 2, "no/such/folder/filled.png: cannot be written"),
        (["-o", "filled.jpg"], 2, "filled.jpg: the file's name must end in .png"),
        ([], 1, "opsin: {photo}: 422 Invalid option: mask: missing: send the part `mask`"),
    ],
)
def test_a_command_that_does_not_work_says_why(painter: Painter, photo: Path, arguments: list[str], code: int, reason: str) -> None:
    ran = opsin("inpaint", photo, *arguments, OPSIN_URL=painter.gateway.url)
    assert ran.returncode == code and reason.format(photo=photo) in ran.stderr and len(ran.stderr.splitlines()) == 1
