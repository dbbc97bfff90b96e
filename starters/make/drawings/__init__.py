"""Draw samples that need no photograph or recording: `python -m starters.make.drawings` writes them again."""
