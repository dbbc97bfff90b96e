"""The process that opens a video, but it says after every frame that it goes on."""

from __future__ import annotations

from models.media import video_program

if __name__ == "__main__":
    video_program.SAY_EVERY_S = 0.0
    video_program.main()
