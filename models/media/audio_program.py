"""Program that decodes one sound: `python -m models.media.audio_program`. See `models.media.audio`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from models.media.audio_decoding import Resampler, decode_mono
from models.media.video_program import MediaRefused, open_file
from models.processes import confined_process

CHUNK_SAMPLES = 2**16
"""Approximate number of samples that are sent at once."""


def main() -> None:
    _import_all()
    request = confined_process.receive_request()
    confined_process.confine()
    try:
        with open_file(os.fdopen(0, "rb"), request["demuxer"]) as container:
            for chunk in _join_chunks(decode_mono(container, request["rate"], request["seconds"])):
                confined_process.write_message({"samples": len(chunk)})
                confined_process.write_payload(chunk.data.cast("B"))
        confined_process.write_message({"end": True})
    except MediaRefused as refusal:
        confined_process.write_message({"error": refusal.kind, "detail": str(refusal)})
    except av.error.PatchWelcomeError:
        confined_process.write_message({"error": "broken", "detail": "it uses a part of its format that is not decoded here"})
    except (av.error.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        confined_process.write_message({"error": "broken", "detail": f"the file is truncated or damaged ({words})"})


def _import_all() -> None:
    """Import the parts of libraries that are imported late, when this process can open no file any more."""
    silence = AudioFrame.from_ndarray(np.zeros((2, 8), np.float32), format="fltp", layout="stereo")
    silence.sample_rate = 44_100
    resampler = Resampler(silence, 16_000)
    list(resampler.push(silence))
    list(resampler.push(None))


def _join_chunks(chunks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    waiting: list[NDArray[np.float32]] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(map(len, waiting)) >= CHUNK_SAMPLES:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


if __name__ == "__main__":
    main()
