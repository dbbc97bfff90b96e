"""The public names for packages that add tasks and systems (`docs/extending.md`). It imports no torch.

A package lists a task in the entry point group `opsin.tasks`, and the system of its network in `opsin.systems`.
"""

from opsin.engine import enter

enter()

from models.bundle import BundleSpec, write  # noqa: E402
from models.bundle_schema import Clip, FileDigest, Preprocess, QuerySpace, Sound, TextSpec  # noqa: E402
from models.registry import Architecture, BundleDefaults, System  # noqa: E402
from server.media import images  # noqa: E402
from server.media.images import ImageDecoder  # noqa: E402
from server.media.limits import ExcessivePart, InvalidPart  # noqa: E402
from server.tasks.base import (  # noqa: E402
    JSON,
    Arrays,
    ControlsBatching,
    Counts,
    EchoesArrays,
    FileAnswer,
    Item,
    KeepsScenes,
    OffersFiles,
    OffersTensors,
    Outputs,
    Plans,
    PresentsElsewhere,
    Previews,
    RecallsTexts,
    RequestPart,
    SelectsBundles,
    Shapes,
    TakesSteps,
    Task,
    Tensor,
    TwoStage,
)
from server.tasks.options import ExcessiveOption, InvalidOption, RequestOptions  # noqa: E402

__all__ = [
    "JSON",
    "Architecture",
    "Arrays",
    "BundleDefaults",
    "BundleSpec",
    "Clip",
    "ControlsBatching",
    "Counts",
    "EchoesArrays",
    "ExcessiveOption",
    "ExcessivePart",
    "FileAnswer",
    "FileDigest",
    "ImageDecoder",
    "InvalidOption",
    "InvalidPart",
    "Item",
    "KeepsScenes",
    "OffersFiles",
    "OffersTensors",
    "Outputs",
    "Plans",
    "Preprocess",
    "PresentsElsewhere",
    "Previews",
    "QuerySpace",
    "RecallsTexts",
    "RequestOptions",
    "RequestPart",
    "SelectsBundles",
    "Shapes",
    "Sound",
    "System",
    "TakesSteps",
    "Task",
    "Tensor",
    "TextSpec",
    "TwoStage",
    "images",
    "write",
]
