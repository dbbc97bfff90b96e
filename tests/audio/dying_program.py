"""A decoder that dies of a sound."""

from __future__ import annotations

import os

from models.processes import confined_process

if __name__ == "__main__":
    confined_process.request()
    os._exit(os.EX_SOFTWARE)
