"""A program that reads its file and never says anything."""

import time

from models.processes import confined_process

if __name__ == "__main__":
    confined_process.request()
    time.sleep(3600)
