"""A program whose compiled code fails."""

import os

from models.media import confined

if __name__ == "__main__":
    confined.request()
    os.abort()
