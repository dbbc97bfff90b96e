"""Files that clients send write nothing into the log."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import io, logging
import numpy as np
from PIL import Image
from server.media import depth
from server.media.limits import MediaError
from server.media.images import ImageDecoder
from server.media.images import silence_decoders

logging.basicConfig(level="INFO")
logging.captureWarnings(True)
{silence}
decoder, told = ImageDecoder(1_000_000), []

def read(work):
    try:
        work()
    except MediaError as error:
        told.append(str(error))

def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()

tiff = bytearray(encoded(Image.fromarray(np.arange(12_000, dtype=np.uint8).reshape(60, 200)), "TIFF", compression="tiff_deflate"))
tiff[tiff.index(b"\\x78\\x9c") + 8] ^= 0xFF
read(lambda: decoder.decode(bytes(tiff)).__enter__())
metres = encoded(Image.fromarray(np.full((8, 8), 1000, np.uint16)), "PNG")
read(lambda: depth.read_depth(metres, decoder, 1e-300))
print(len(told))
"""


def run(silence: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM.format(silence=silence)], capture_output=True, text=True, check=True)


def test_damaged_tiff_and_overflowing_depth_scale_print_nothing() -> None:
    assert run("").stderr.count("\n") >= 2, "both are worth a line to a library"
    silent = run("silence_decoders()")
    assert silent.stderr == "" and silent.stdout.strip() == "1", "whoever sent the TIFF is told"
