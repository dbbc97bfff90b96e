"""A decoder that went mad: it sends far more than the sound may hold."""

from __future__ import annotations

from models.media import confined

if __name__ == "__main__":
    confined.request()
    confined.say({"samples": 2**33})
