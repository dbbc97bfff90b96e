"""ONNX Runtime's sessions, for foreign graphs and for graphs of a bundle's weights."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

if TYPE_CHECKING:
    import torch

MEMORY_SHARE = 4
"""A quarter of a GPU's memory may hold what one graph allocates; without a limit its arena keeps its peak."""
FIRST_RUN_S = 30.0
"""Timeout of a graph's first batch, in seconds, which is one of two: other bundles wait to be loaded."""


def open_session(content: bytes, device: torch.device | None, threads: int, folder: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a session. device: None for the CPU. folder: of files with further weights. Raises ValueError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes need the CPUs
    options.log_severity_level = 4  # the exception says what is wrong
    options.add_session_config_entry("session.load_model_format", "ONNX")  # else bytes may pass for its own format, which is not checked
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    requested = providers(device)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=requested)
    except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
        raise ValueError(f"ONNX Runtime does not accept it: {first_line(error)}") from error
    if len(requested) > len(session.get_providers()):
        warnings.warn("this ONNX Runtime could not start CUDA, so the graph runs on the CPU; docs/gpu.md says why", stacklevel=2)
    return session


@contextmanager
def run_timeout(seconds: float) -> Iterator[onnxruntime.RunOptions]:
    """Yield options of a run that ends after a timeout: a graph may have an endless loop. Raises TimeoutError."""
    options = onnxruntime.RunOptions()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    except Exception as error:
        if not options.terminate:
            raise
        raise TimeoutError(f"it has not ended after {seconds:.0f} s") from error
    finally:
        timer.cancel()


@contextmanager
def first_run(example: str) -> Iterator[onnxruntime.RunOptions]:
    """Yield options of a graph's first run, on an example. Raises ValueError if it fails or exceeds FIRST_RUN_S."""
    try:
        with run_timeout(FIRST_RUN_S) as options:
            yield options
    except Exception as error:  # ONNX Runtime's own exceptions derive from Exception alone
        raise ValueError(f"it fails on {example}: {first_line(error)}") from error


def providers(device: torch.device | None) -> list[str | tuple[str, dict[str, Any]]]:
    """Return CUDA for a CUDA device if this ONNX Runtime has it, and the CPU for the rest. CUDA computes float32 exactly, and chooses
    algorithms of convolutions by heuristics: to try them all takes seconds for each size of batch."""
    cpu: list[str | tuple[str, dict[str, Any]]] = ["CPUExecutionProvider"]
    if device is None or device.type != "cuda":
        return cpu
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        warnings.warn(
            "this ONNX Runtime has no CUDA, so graphs run on the CPU; docs/bundles.md says how to install the other one", stacklevel=2
        )
        return cpu
    import torch  # programs that try graphs do without it

    onnxruntime.preload_dlls()  # CUDA's libraries in wheels: torch loads those that it needs itself, which need not include cuRAND
    memory = torch.cuda.get_device_properties(device).total_memory // MEMORY_SHARE
    cuda = {"device_id": device.index or 0, "gpu_mem_limit": memory, "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0}
    return [("CUDAExecutionProvider", cuda), *cpu]


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
