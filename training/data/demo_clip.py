"""A real clip of two people: one jumps off a block and does tricks, the other one walks. Downloaded when it is needed."""

from __future__ import annotations

from training.data.packages import PyPIPackage

CLIPS = PyPIPackage(name="sports2d", version="0.8.34", sha256="733b6db70742636ae9c35d870c22bd416582f579abd5881bee93a14bb0e2655d")
"""BSD-3-Clause."""
CLIP = "Sports2D/Demo/demo.mp4"
"""7.7 seconds of 1768 × 994 pixels."""
