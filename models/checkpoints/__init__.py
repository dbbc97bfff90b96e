"""Reading of published checkpoints: `import_checkpoint` for a bundle, `detect` and `fit` for the weights alone."""

from models.checkpoints.checkpoint_file import CheckpointError, open_checkpoint, read_checkpoint
from models.checkpoints.family import UnlikeFamily, families
from models.checkpoints.fit_family import CheckpointFit, detect, fit
from models.checkpoints.import_checkpoint import import_checkpoint

__all__ = [
    "CheckpointError",
    "CheckpointFit",
    "UnlikeFamily",
    "detect",
    "families",
    "fit",
    "import_checkpoint",
    "open_checkpoint",
    "read_checkpoint",
]
