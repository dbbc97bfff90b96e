"""A program that reads its file and never says anything."""

import time

from models.media import confined

if __name__ == "__main__":
    confined.request()
    time.sleep(3600)
