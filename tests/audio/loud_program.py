"""A decoder that went mad: it sends far more than the sound may hold."""

from __future__ import annotations

from models.processes import confined_process

if __name__ == "__main__":
    confined_process.request()
    confined_process.say({"samples": 2**33})
