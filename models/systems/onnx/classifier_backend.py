"""A bundle's classifier in ONNX Runtime: its graph is written once, cached in a folder, and compared with the model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, BundleSpec
from models.bundle_schema import Accuracies, Int8
from models.loading import Arrays, LoadedModel, load
from models.merge_schedule import MergeSchedule
from models.registry import architectures, resolve
from models.systems.onnx.session import open_session

Precision = Literal["float32", "int8"]

GRAPH_VERSION = 1
"""Version of the graphs of `models.systems.vit.onnx_graph`; raise it when they change."""
TOLERANCE = 1e-4
"""Maximum difference from the model's logits in float32, relative to max(1, |logit|)."""
MAX_CACHE_BYTES = 8 * 2**30
"""Maximum size of all graphs in a folder; those that were not used for longest are removed first."""
MAX_DRAFT_AGE_S = 3600.0
"""Age in seconds after which an unfinished file is removed."""


CALIBRATION_BATCH = 8
"""Batch size of calibration, as large as served ones, since activations are quantised by the range of a whole batch."""


CONFIDENCE = 0.95
"""Confidence of the one-sided interval of the fraction of labels that agree."""


class GraphError(Exception):
    """Error of a bundle without a graph, or whose graph differs from the model."""


class OnnxClassifier:
    """Classifier with the outputs of `LoadedModel.forward` for task classify, without traces. Any number of threads may call it at once."""

    def __init__(self, spec: BundleSpec, config: Any, session: onnxruntime.InferenceSession) -> None:
        self.spec = spec
        self._config = config
        self._session = session
        self.difference = 0.0
        """Maximum difference from the model's logits in float32, on the batch of the comparison."""

    def forward(self, arrays: Arrays, options: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Classify pixels: uint8 (B, S, S, 3) → logits float32 (B, classes), tokens int32 (B, 2)."""
        merges = effective_merge(self._config, options.get("merge", ()))
        inputs = {"pixels": np.ascontiguousarray(arrays["pixels"]), "merge": np.array(merges, np.int64)}
        (logits,) = self._session.run(None, inputs)
        tokens = self._config.patches + self._config.special_tokens
        counts = np.array([[tokens, tokens - sum(merges)]], np.int32)
        return {"logits": logits, "tokens": np.repeat(counts, len(logits), axis=0)}


def effective_merge(config: Any, schedule: Any) -> tuple[int, ...]:
    """Return the number of tokens that merge in each block of a ViT; schedules with the same numbers have the same shapes."""
    before = config.patches + config.special_tokens
    merged = []
    for after in MergeSchedule.from_list(schedule).token_counts(before, config.depth, config.special_tokens):
        merged.append(before - after)
        before = after
    return tuple(merged)


def has_graph(spec: BundleSpec) -> bool:
    """Return True if a bundle can be run so, by its spec."""
    architecture = architectures().get(spec.architecture)
    return spec.task == "classify" and architecture is not None and architecture.graph is not None


def write_graph(bundle: Bundle, folder: Path, precision: Precision) -> None:
    """Write the graph to `folder` unless it is there. Raises GraphError, BundleError, and OSError if it cannot be written."""
    if find_graph(bundle, folder, precision) is None:
        content = _make_graph(load(bundle), precision)
        _write_atomically(folder, _file_name(_key(bundle.spec, precision), content), content)


def find_graph(bundle: Bundle, folder: Path, precision: Precision) -> bytes | None:
    """Return the graph that `write_graph` has written; None if there is none that is undamaged."""
    return _read_graph(folder, _key(bundle.spec, precision))


def open_classifier(
    bundle: Bundle,
    folder: Path | None,
    precision: Precision,
    threads: int,
    sample: Arrays,
    model: LoadedModel | None = None,
    content: bytes | None = None,
) -> OnnxClassifier:
    """Open the graph that is cached in `folder`, or write it. Raises GraphError, and BundleError if the weights are damaged.

    sample: arrays of a batch, on which float32 is compared with the model. model: the bundle's in float32 on the CPU, to compare with;
    None: it is loaded. content: the graph, if it is known.
    """
    if not has_graph(bundle.spec):
        raise GraphError(f"architecture {bundle.spec.architecture} has no ONNX graph for task {bundle.spec.task}")
    model = model or load(bundle)
    content = content or _cached_graph(folder, _key(bundle.spec, precision), lambda: _make_graph(load(bundle), precision))
    try:
        session = open_session(content, torch.device("cpu"), threads)
    except ValueError as error:
        raise GraphError(str(error)) from error
    classifier = OnnxClassifier(bundle.spec, model.model.config, session)
    merges = ({"merge": ()}, {"merge": _default_merge(model)})
    classifier.difference = max(_compare(classifier, model, sample, options, precision) for options in merges)
    return classifier


def calibrate(bundle: Bundle, pixels: NDArray[np.uint8], labels: NDArray[np.int64], bound: float, threads: int = 1) -> Int8:
    """Measure each rung, and merging off, in float32 and int8. Raises GraphError and BundleError.

    pixels: (N, S, S, 3) at the bundle's size; labels: (N,).
    """
    sample = {"pixels": pixels[:2]}
    exact, int8 = (open_classifier(bundle, None, precision, threads, sample) for precision in get_args(Precision))
    schedules = {"off": MergeSchedule.off()} | {rung.name: rung.merge for rung in bundle.spec.ladder}
    depth = int(bundle.spec.config.get("depth", 1))
    rungs = {}
    for name, schedule in schedules.items():
        exact_classes, int8_classes = (_best_classes(classifier, pixels, schedule.expand(depth)) for classifier in (exact, int8))
        rungs[name] = _accuracies(exact_classes, int8_classes, labels)
    return Int8(bound=bound, images=len(pixels), rungs=rungs)


def _best_classes(classifier: OnnxClassifier, pixels: NDArray[np.uint8], merge: Sequence[int]) -> NDArray[np.int64]:
    """Return the best class of each image, (N,)."""
    starts = range(0, len(pixels), CALIBRATION_BATCH)
    parts = [classifier.forward({"pixels": pixels[start : start + CALIBRATION_BATCH]}, {"merge": merge})["logits"] for start in starts]
    best: NDArray[np.int64] = np.concatenate(parts).argmax(axis=1)
    return best


def _accuracies(exact: NDArray[np.int64], int8: NDArray[np.int64], labels: NDArray[np.int64]) -> Accuracies:
    """Return the accuracies of the best classes in float32 and in int8."""
    from scipy.special import betaincinv

    count, same = len(labels), int((exact == int8).sum())
    losses = (exact == labels).astype(float) - (int8 == labels)
    return Accuracies(
        float32=float((exact == labels).mean()),
        int8=float((int8 == labels).mean()),
        loss_error=float(losses.std(ddof=1) / math.sqrt(count)) if count > 1 else None,
        agreement=same / count,
        agreement_bound=float(betaincinv(same, count - same + 1, 1 - CONFIDENCE)) if same else 0.0,
    )


def _make_graph(model: LoadedModel, precision: Precision) -> bytes:
    make = resolve(architectures()[model.spec.architecture].graph or "")
    try:
        content: bytes = make(model.model, model.spec.image_preprocess, int8=precision == "int8")
    except ValueError as error:
        raise GraphError(str(error)) from error
    return content


def _compare(classifier: OnnxClassifier, model: LoadedModel, sample: Arrays, options: Mapping[str, Any], precision: Precision) -> float:
    """Return the maximum difference of the logits. Raises GraphError if it is too large.

    Int8 logits only need to be finite: their loss of accuracy is measured by `opsin calibrate`.
    """
    try:
        logits = classifier.forward(sample, options)["logits"]
    except Exception as error:
        raise GraphError(f"the graph fails: {error}") from error
    if not np.isfinite(logits).all():
        raise GraphError("the graph's logits are not finite")
    expected = model.forward(sample, options)["logits"]
    difference = float((np.abs(logits - expected) / np.maximum(np.abs(expected), 1)).max())
    if precision != "int8" and not difference <= TOLERANCE:  # also refuses NaN of the model's own
        raise GraphError(f"the graph's logits differ by {difference:.1e} from the model's, more than {TOLERANCE:.0e}")
    return float(np.abs(logits - expected).max())


def _default_merge(model: LoadedModel) -> tuple[int, ...]:
    rung = model.spec.rung(model.spec.default_rung) if model.spec.default_rung else None
    return rung.merge.expand(model.depth) if rung else (1,) * model.depth


def _key(spec: BundleSpec, precision: Precision) -> str:
    """Return a digest of everything that the graph depends on."""
    parts = [
        GRAPH_VERSION,
        precision,
        spec.architecture,
        spec.config,
        spec.image_preprocess.mean,
        spec.image_preprocess.std,
        spec.weights.sha256,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _cached_graph(folder: Path | None, key: str, make: Callable[[], bytes]) -> bytes:
    content = None if folder is None else _read_graph(folder, key)
    if content is not None:
        return content
    content = make()
    if folder is not None:
        with suppress(OSError):  # it is made again the next time
            _write_atomically(folder, _file_name(key, content), content)
    return content


def _read_graph(folder: Path, key: str) -> bytes | None:
    """Return a graph's bytes if they are undamaged, and remove damaged ones: a file's name contains the SHA-256 of its content."""
    for path in folder.glob(f"{key}-*.onnx"):
        with suppress(OSError):
            content = path.read_bytes()
            if path.name == _file_name(key, content):
                os.utime(path)
                return content
            path.unlink()
    return None


def _file_name(key: str, content: bytes) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()[:32]}.onnx"


def _write_atomically(folder: Path, name: str, content: bytes) -> None:
    """Write a file so that readers see the whole of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=".", suffix=".draft", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(draft).replace(folder / name)
    finally:
        Path(draft).unlink(missing_ok=True)
    _evict(folder, folder / name)


def _evict(folder: Path, fresh: Path) -> None:
    used = 0
    for path in sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True):
        used += path.stat().st_size
        if used > MAX_CACHE_BYTES and path != fresh:
            path.unlink(missing_ok=True)
    for path in folder.glob(".*.draft"):
        if time.time() - path.stat().st_mtime > MAX_DRAFT_AGE_S:
            path.unlink(missing_ok=True)
