"""A decoder that dies of a sound."""

from __future__ import annotations

import os

from models.media import confined

if __name__ == "__main__":
    confined.request()
    os._exit(os.EX_SOFTWARE)
