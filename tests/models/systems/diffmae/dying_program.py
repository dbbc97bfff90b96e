"""A program whose compiled code fails."""

import os

from models.processes import confined_process

if __name__ == "__main__":
    confined_process.request()
    os.abort()
