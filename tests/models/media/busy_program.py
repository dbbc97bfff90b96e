"""A program that says that it works and then is silent, confined."""

import time

from models.media import confined

if __name__ == "__main__":
    confined.request()
    confined.confine()
    print("a library that prints")
    confined.say({"works": True})
    time.sleep(3600)
