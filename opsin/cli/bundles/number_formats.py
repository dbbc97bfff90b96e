"""The number format in which this machine serves an imported bundle, and its difference from float32 on real images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from opsin.cli.bundles.compare import compute_logits
from opsin.cli.bundles.model_inputs import load_at_model_size
from opsin.cli.services import settings_of
from opsin.cli.shared.console import format_count
from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from models.bundle import Bundle
    from server.worker.backends.arms import Format
    from server.worker.device_layout import Layout

PIN_HINT = "OPSIN_DTYPE=float32 forces float32"
MEASURED_HINT = "measured just now; each worker measures for itself"
MAX_TRIAL_BYTES = 2**31
"""Maximum size of the weights that an import runs to measure the number format."""
TRIAL_BATCH = 4
MAX_TRIAL_S = 5.0
"""Maximum time for the images; at least one is run."""
MEMBER_TASKS = frozenset({"pose", "body", "depth", "actions"})
"""Tasks of bundles that are only served as members of pipelines, which compute in float32."""
ARRAY_SUFFIXES = ("-depth", "-mask")
"""Suffixes of sample names that are not photographs or drawings."""


def describe_format(bundle: Bundle) -> str:
    """Describe the format used on this machine, its difference from float32 on sample images, and the setting that forces float32."""
    from models.bundle import GRAPH_FILE, BundleError
    from models.loading import unsupported_reason
    from server.worker import device_layout
    from server.worker.backends.runner import is_precise

    spec, is_graph = bundle.spec, bundle.spec.weights_file == GRAPH_FILE
    full_precision = "the graph's own numbers" if is_graph else "float32"
    if reason := unsupported_reason(spec):
        return f"{full_precision} on every machine, as a member of a pipeline" if spec.task in MEMBER_TASKS else f"none: {reason}"
    settings, name = settings_of(None), None
    try:
        layout = device_layout.choose_layout(settings)
        if spec.size <= MAX_TRIAL_BYTES:
            name = _faster_format(bundle, layout, settings.dtype)
        if is_graph or is_precise(spec):
            return f"{full_precision} on every machine, regardless of OPSIN_DTYPE"
        if name is None:
            return f"measured by the first worker, since the weights are large, and then shown in GET /v1/models; {PIN_HINT}"
        distance = _half_distance(bundle, layout)
    except (BundleError, UsageError, ValueError, RuntimeError) as error:
        return f"unknown: it does not run on this machine ({error})"
    device = _device_name(layout.device)
    chosen = f"float32 on {device} ({layout.half}, if that is faster: {distance})" if name == "float32" else f"{name} on {device}: {distance}"
    measured_hint = f"; {MEASURED_HINT}" if settings.dtype == "auto" else ""
    return f"{chosen}{measured_hint}; {PIN_HINT}"


def _faster_format(bundle: Bundle, layout: Layout, setting: str) -> Format:
    """Return the format that the setting names, or that workers of this machine would choose. Raises BundleError."""
    from models.loading import load
    from opsin.measuring.timing import REPEATS, measure_seconds
    from server.worker.backends.arms import HANDICAPS
    from server.worker.backends.verification import DTYPES, default_schedule, sample
    from server.worker.backends.runner import is_precise

    if setting == "float32" or is_precise(bundle.spec):
        return "float32"
    if setting == layout.half:
        return layout.half
    formats: tuple[Format, ...] = ("float32", layout.half)
    models = {name: load(bundle, device=layout.device, dtype=DTYPES[name], packed=True) for name in formats}
    exact, job = models["float32"], sample(bundle.spec, TRIAL_BATCH)
    if exact.steps is not None or next(exact.model.parameters(), None) is None:
        return "float32"
    options = {"merge": default_schedule(bundle.spec).expand(exact.depth)}
    seconds = {
        name: min(measure_seconds(layout, lambda model=model: model.forward(job, options)) for _ in range(1 + REPEATS))  # type: ignore[misc]
        for name, model in models.items()
    }
    return layout.half if HANDICAPS[layout.half] * seconds[layout.half] < seconds["float32"] else "float32"


def _device_name(device: torch.device) -> str:
    import torch

    return "this machine's CPU" if device.type == "cpu" else f"this machine's GPU ({torch.cuda.get_device_name(device)})"


def _half_distance(bundle: Bundle, layout: Layout) -> str:
    """Describe the difference of a classifier's logits in the device's 16-bit format from those in float32. Raises BundleError, UsageError."""
    import numpy as np
    import torch

    from models.loading import load
    from server.worker.backends.verification import DTYPES, default_schedule

    exact, short = (load(bundle, device=layout.device, dtype=dtype, packed=True) for dtype in (torch.float32, DTYPES[layout.half]))
    schedule, images = default_schedule(bundle.spec), load_at_model_size(_sample_images(), bundle.spec, "import")
    max_distance, same_labels, count, deadline = 0.0, 0, 0, time.monotonic() + MAX_TRIAL_S
    for image in images:
        if count and time.monotonic() > deadline:
            break
        exact_logits, short_logits = (compute_logits(model, exact.depth, image[None], schedule)[0] for model in (exact, short))
        max_distance = max(max_distance, float(np.abs(exact_logits.astype(np.float64) - short_logits).max()))
        same_labels += int(exact_logits.argmax() == short_logits.argmax())
        count += 1
    return f"at most {max_distance:.1e} from float32's logits on {format_count(count, 'image')}, best label equal on {same_labels}"


def _sample_images() -> list[Path]:
    """Return the drawings and photographs of the playground."""
    from server.playground import SAMPLES

    return [file for file in sorted(SAMPLES.glob("*.png")) if not file.stem.endswith(ARRAY_SUFFIXES)]
