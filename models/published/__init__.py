"""Reading the checkpoints of others: `import_checkpoint` for a bundle, `detect` and `fit` for the weights alone."""

from models.published.container import CheckpointError, open_checkpoint, read_checkpoint
from models.published.detecting import detect
from models.published.family import UnlikeFamily
from models.published.fitting import Fit, fit
from models.published.importing import import_checkpoint
from models.registry import families

__all__ = ["CheckpointError", "Fit", "UnlikeFamily", "detect", "families", "fit", "import_checkpoint", "open_checkpoint", "read_checkpoint"]
