"""The numbers that this machine serves an imported bundle in, and how far its answers to real images are from float32's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from opsin.cli.bundles.compare import logits
from opsin.cli.bundles.model_inputs import at_model_size
from opsin.cli.services import settings_of
from opsin.cli.shared.console import counted
from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from models.bundle import Bundle

PIN = "OPSIN_DTYPE=float32 pins float32"
MEASURED = "as measured just now; each worker measures for itself"
MAX_TRIAL_BYTES = 2**31
"""Bytes of weights that an import runs to see the number format."""
MAX_TRIAL_S = 5.0
"""Time for the images, of which the first is always tried."""
MEMBERS = frozenset({"pose", "body", "depth", "actions"})
"""Tasks of bundles that answer only as members of pipelines, which compute in float32."""
ARRAYS = ("-depth", "-mask")
"""Ends of the names of samples that are no images to look at."""


def sentence(bundle: Bundle) -> str:
    """The format that answers here, its distance from float32 on how many images, and the setting that pins float32."""
    from models.bundle import GRAPH_FILE, BundleError
    from models.loading import unsupported_reason
    from models.registry import architectures
    from server.worker import device_layout, warmup

    spec, is_graph = bundle.spec, bundle.spec.weights_file == GRAPH_FILE
    own = "the graph's own numbers" if is_graph else "float32"
    if reason := unsupported_reason(spec):
        return f"{own} on every machine, as a member of a pipeline" if spec.task in MEMBERS else f"none: {reason}"
    settings, name = settings_of(None), None
    is_precise = is_graph or spec.task in architectures()[spec.architecture].precise_tasks
    try:
        place = device_layout.choose(settings)
        if spec.size <= MAX_TRIAL_BYTES:
            name = warmup.in_the_faster_format(bundle, place, settings.dtype)[1]
        if is_precise:
            return f"{own} on every machine, whatever OPSIN_DTYPE says"
        if name is None:
            return f"measured by the first worker, since the weights are large, and then in GET /v1/models; {PIN}"
        distance = _distance(bundle, place.device)
    except (BundleError, UsageError, ValueError, RuntimeError) as error:
        return f"unknown: it does not run here ({error})"
    here = _here(place.device)
    found = f"float32 on {here} (bfloat16, where that is faster: {distance})" if name == "float32" else f"{name} on {here}: {distance}"
    measured = f"; {MEASURED}" if settings.dtype == "auto" else ""
    return f"{found}{measured}; {PIN}"


def _here(device: torch.device) -> str:
    import torch

    return "this machine's CPU" if device.type == "cpu" else f"this machine's GPU ({torch.cuda.get_device_name(device)})"


def _distance(bundle: Bundle, device: torch.device) -> str:
    """How far a classifier's logits in bfloat16 are from those in float32. Raises BundleError, UsageError."""
    import numpy as np
    import torch

    from models.loading import load
    from server.worker.backends import usual_schedule

    exact, short = (load(bundle, device=device, dtype=dtype, packed=True) for dtype in (torch.float32, torch.bfloat16))
    schedule, images = usual_schedule(bundle.spec), at_model_size(_samples(), bundle.spec, "import")
    furthest, same, count, deadline = 0.0, 0, 0, time.monotonic() + MAX_TRIAL_S
    for image in images:
        if count and time.monotonic() > deadline:
            break
        own, other = (logits(model, exact.depth, image[None], schedule)[0] for model in (exact, short))
        furthest = max(furthest, float(np.abs(own.astype(np.float64) - other).max()))
        same += int(own.argmax() == other.argmax())
        count += 1
    return f"at most {furthest:.1e} from float32's logits on {counted(count, 'image')}, best label the same on {same}"


def _samples() -> list[Path]:
    """Drawings and photographs of the playground."""
    from server.playground import SAMPLES

    return [file for file in sorted(SAMPLES.glob("*.png")) if not file.stem.endswith(ARRAYS)]
