"""Preparing and composing a large image take the little memory that they reserve."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from server.media.images import ImageDecoder
from server.media.memory_budget import MemoryBudget
from server.tasks.inpaint.task import InpaintTask
from tests.support.images import encode, noise
from tests.tasks.test_inpaint import SPEC, plan, white

MEASURE = """
import json, re, sys
from pathlib import Path
from PIL import Image
from server.media.images import ImageDecoder
from server.media.memory_budget import MemoryBudget
from server.tasks.inpaint.task import InpaintTask
from server.tasks.inpaint.schema import InpaintOptions
from tests.tasks.test_inpaint import SPEC, paint
from tests.support.images import encode, noise

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

class Noting(MemoryBudget):
    def acquire(self, nbytes):
        asked.append(nbytes)

asked, decoder, task = [], ImageDecoder(50_000_000), InpaintTask()
decoder.budget = Noting(0)

def run(item, plan):
    [arrays] = task.prepare(item, plan, SPEC, decoder)
    return task.present([paint(arrays)], plan, SPEC, "image/png"), task.memory_to_present([paint(arrays)], plan)

plan = task.plan(InpaintOptions(**json.loads(sys.argv[3])), SPEC)
small = noise(300, 400)
run({"image": encode(small, "PNG"), "mask": encode(Image.new("L", (400, 300), 255), "PNG")}, plan)
asked.clear()
item = {"image": Path(sys.argv[1]).read_bytes(), "mask": Path(sys.argv[2]).read_bytes()}
before = peak()
_, asked_to_present = run(item, plan)
print(json.dumps({"taken": peak() - before, "asked": max(asked + [asked_to_present])}))
"""
PIXELS = 2400 * 1800


@pytest.mark.parametrize(("mode", "options"), [("RGB", {"grow": 512, "feather": 128}), ("RGBA", {})], ids=["feathered", "with a membrane"])
def test_inpainting_reserves_a_few_bytes_per_pixel(tmp_path: Path, mode: str, options: dict[str, int]) -> None:
    image, mask = tmp_path / "image", tmp_path / "mask"
    image.write_bytes(encode(noise(30, 40, len(mode)).resize((2400, 1800)), compress_level=1))
    mask.write_bytes(encode(white(1800, 2400, (300, 300, 1900, 1500))))
    command = [sys.executable, "-c", MEASURE, str(image), str(mask), json.dumps({"steps": 1, "sampler": "ddim", **options})]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert measured["taken"] < measured["asked"] < 32 * PIXELS


def test_preparing_waits_while_others_hold_the_memory() -> None:
    decoder, task = ImageDecoder(max_pixels=200 * 100), InpaintTask()
    item = {"image": encode(noise(100, 200)), "mask": encode(white(100, 200, (10, 10, 50, 50)))}
    done = threading.Event()

    def prepare() -> None:
        task.prepare(item, plan(), SPEC, decoder)
        done.set()

    thread = threading.Thread(target=prepare)
    with decoder.budget.reserve(2 * 4 * 200 * 100):
        thread.start()
        assert not done.wait(0.3)
    assert done.wait(60)
    thread.join()


def test_what_needs_little_memory_waits_for_no_larger_piece() -> None:
    budget, passed = MemoryBudget(1000), threading.Event()

    def smaller() -> None:
        with budget.reserve(125):
            passed.set()

    with budget.reserve(1000):
        next_one = threading.Thread(target=lambda: budget.acquire(900), daemon=True)  # stands at the door
        next_one.start()
        threading.Thread(target=smaller, daemon=True).start()
        assert passed.wait(30)
    next_one.join(30)
