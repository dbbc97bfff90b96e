"""Reading the checkpoints of others: `import_checkpoint` for a bundle, `detect` and `fit` for the weights alone."""

from models.published.container import CheckpointError, read_checkpoint
from models.published.family import UnlikeFamily
from models.published.importing import FAMILIES, Fit, detect, fit, import_checkpoint

__all__ = ["FAMILIES", "CheckpointError", "Fit", "UnlikeFamily", "detect", "fit", "import_checkpoint", "read_checkpoint"]
