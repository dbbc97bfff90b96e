"""This draws the samples that need no photograph or recording: `python -m training.starters.drawings` writes them again."""
