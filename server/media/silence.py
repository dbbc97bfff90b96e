"""Decoders say nothing about what strangers send: whoever sent it is told, and a log that anybody can fill is of no use."""

from __future__ import annotations

import ctypes
import logging
import warnings
from contextlib import suppress

from PIL import _imaging


def silence_decoders() -> None:
    """For this process: warnings of Python and NumPy (a division that overflows, damaged metadata), records of Pillow, and what libtiff
    writes to stderr by itself."""
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with suppress(OSError, AttributeError):  # where Pillow has another libtiff, or none
        pillow = ctypes.CDLL(_imaging.__file__)
        pillow.TIFFSetErrorHandler(None)
        pillow.TIFFSetWarningHandler(None)
