"""`python -P -m opsin.engine training RECIPE.yaml`, on one process, or under torchrun on many."""

from __future__ import annotations

import sys

from training.cli import main

if __name__ == "__main__":
    sys.exit(main())
