"""This draws the samples that are made here: `python -m server.playground.drawing` writes them again."""
