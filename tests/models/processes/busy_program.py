"""A program that says that it works and then is silent, confined."""

import time

from models.processes import confined_process

if __name__ == "__main__":
    confined_process.request()
    confined_process.confine()
    print("a library that prints")
    confined_process.say({"works": True})
    time.sleep(3600)
