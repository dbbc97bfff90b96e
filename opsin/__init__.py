"""The public names of Opsin: the client and its results.

Names are imported on first use, and httpx2 and numpy with them, so that `import opsin` and `opsin --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opsin.actions import Second, TrackedPerson, VideoActions
    from opsin.async_client import AsyncClient
    from opsin.async_gallery import AsyncGallery
    from opsin.async_jobs import AsyncJob
    from opsin.bulk import Outcome, Outcomes
    from opsin.client import Client
    from opsin.embedding import Embeddings, TokenEmbeddings
    from opsin.errors import DeadlinePassed, Failed, OpsinError, Refused, Unavailable, Unreachable
    from opsin.events import Event, JobStatus
    from opsin.gallery import Gallery
    from opsin.inpainting import Filled, Inpainting
    from opsin.jobs import Job
    from opsin.reconstruction import Reconstruction
    from opsin.results import Classification, ClipFacts, Merging, Model, Prediction, Readiness, SoundFacts, Timing, ViewScores
    from opsin.vector_file import Match
    from opsin.zero_shot import LabelScore, ZeroShotClassification

__version__ = "0.3.0"

__all__ = [
    "AsyncClient",
    "AsyncGallery",
    "AsyncJob",
    "Classification",
    "Client",
    "ClipFacts",
    "DeadlinePassed",
    "Embeddings",
    "Event",
    "Failed",
    "Filled",
    "Gallery",
    "Inpainting",
    "Job",
    "JobStatus",
    "LabelScore",
    "Match",
    "Merging",
    "Model",
    "OpsinError",
    "Outcome",
    "Outcomes",
    "Prediction",
    "Readiness",
    "Reconstruction",
    "Refused",
    "Second",
    "SoundFacts",
    "Timing",
    "TokenEmbeddings",
    "TrackedPerson",
    "Unavailable",
    "Unreachable",
    "VideoActions",
    "ViewScores",
    "ZeroShotClassification",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'opsin' has no attribute {name!r}")
    modules = (
        "opsin.errors",
        "opsin.results",
        "opsin.zero_shot",
        "opsin.embedding",
        "opsin.inpainting",
        "opsin.reconstruction",
        "opsin.actions",
        "opsin.events",
        "opsin.jobs",
        "opsin.async_jobs",
        "opsin.bulk",
        "opsin.vector_file",
        "opsin.gallery",
        "opsin.async_gallery",
        "opsin.client",
        "opsin.async_client",
    )
    return next(vars(module)[name] for module in map(import_module, modules) if name in vars(module))
