"""T5X checkpoints (FLIP): a folder with an index in Flax's MessagePack and, for each array, a folder in zarr format 2.

Nothing is executed. The folder of an array follows from its name: the paths in the index are those of the machine that wrote it.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INDEX = "checkpoint"
NDARRAY = 1
"""Flax's extension type of an array in the index itself; others are not weights."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
INLINE_TYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")}
STORED_TYPES = {"<f8": "<f8", "<f4": "<f4", "<f2": "<f2", "bfloat16": "<i2", "<i8": "<i8", "<i4": "<i4", "|u1": "|u1", "|b1": "|b1"}
"""zarr's type → NumPy's, which has no bfloat16."""

MAX_ARRAY_BYTES = 1 << 34
"""Maximum size of an array in bytes, more than any published array has."""


class T5XError(Exception):
    """Error of a checkpoint; the message says which file and why."""


class _ZArray(msgspec.Struct):
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    chunks: tuple[Annotated[int, msgspec.Meta(ge=1)], ...]
    dtype: str
    order: Literal["C", "F"]
    compressor: dict[str, Any] | None
    fill_value: float | bool | Literal["NaN", "Infinity", "-Infinity"] | None
    filters: list[Any] | None = None
    dimension_separator: Literal[".", "/"] = "."


def find_checkpoint(folder: Path) -> Path | None:
    """Return a folder that is a checkpoint, or the one with most steps among its `checkpoint_STEP` that have an index; else None."""
    if (folder / INDEX).is_file():
        return folder
    candidates = ((re.fullmatch(r"checkpoint_(\d+)", path.name), path) for path in folder.iterdir() if (path / INDEX).is_file())
    steps = {int(match[1]): path for match, path in candidates if match}
    return steps[max(steps)] if steps else None


def index_file(folder: Path) -> Path:
    """Return the index of the checkpoint that `find_checkpoint` finds. Raises T5XError."""
    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise T5XError(f"{folder}: no T5X checkpoint")
    return checkpoint / INDEX


def read(folder: Path) -> dict[str, Tensor]:
    """Read the parameters of a checkpoint by their paths in the tree, joined by dots; in JAX's layouts. Raises T5XError."""
    index = folder / INDEX
    try:
        content = msgspec.msgpack.decode(index.read_bytes(), ext_hook=_extension)
        target = content["optimizer"]["target"]
        leaves = dict(_leaves(target))
    except Exception as error:  # a damaged index makes its reader raise almost anything
        raise T5XError(f"{index}: no index of a T5X checkpoint ({error})") from error
    return {name: leaf if isinstance(leaf, Tensor) else _read_array(folder, name) for name, leaf in leaves.items()}


def _extension(code: int, data: memoryview) -> Any:
    if code != NDARRAY:
        return None
    shape, dtype, values = msgspec.msgpack.decode(data)
    if dtype not in INLINE_TYPES:
        raise msgspec.DecodeError(f"an array of type {dtype!r}")
    try:
        flat = torch.frombuffer(bytearray(values), dtype=INLINE_TYPES[dtype]) if values else torch.empty(0, dtype=INLINE_TYPES[dtype])
        return flat.reshape(shape)
    except (RuntimeError, ValueError) as error:
        raise msgspec.DecodeError(f"an array whose shape {shape} is not that of its {len(values)} bytes") from error


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (name, array) for arrays in the index, and (name, description) for the others."""
    for key, value in tree.items():
        subpath = (*path, key)
        if isinstance(value, Tensor) or "driver" in value:
            yield ".".join(subpath), value
        elif "__msgpack_chunked_array__" in value:  # Flax cuts arrays above a gigabyte
            chunks = [value["chunks"][str(index)].flatten() for index in range(len(value["chunks"]))]
            yield ".".join(subpath), torch.cat(chunks).reshape([value["shape"][str(axis)] for axis in range(len(value["shape"]))])
        else:
            yield from _leaves(value, subpath)


def _read_array(folder: Path, name: str) -> Tensor:
    if not PLAIN_NAME.fullmatch(name):
        raise T5XError(f"{folder / INDEX}: {name!r} is not a name of an array")
    array_folder = folder / f"target.{name}"
    try:
        metadata = msgspec.json.decode((array_folder / ".zarray").read_bytes(), type=_ZArray)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise T5XError(f"{array_folder}: its .zarray cannot be read ({error})") from error
    shape, chunks = metadata.shape, metadata.chunks
    if metadata.dtype not in STORED_TYPES or metadata.filters or (metadata.compressor and metadata.compressor.get("id") != "gzip"):
        raise T5XError(
            f"{array_folder}: type {metadata.dtype}, compressor {metadata.compressor}, filters {metadata.filters}: "
            "only plain numbers in gzip are read"
        )
    dtype = np.dtype(STORED_TYPES[metadata.dtype])
    if len(shape) != len(chunks) or max(math.prod(shape), math.prod(chunks)) * dtype.itemsize > MAX_ARRAY_BYTES:
        raise T5XError(f"{array_folder}: shape {shape} in chunks {chunks} cannot be")

    array: NDArray[Any] = np.empty(shape, dtype)
    for position in itertools.product(*(range(math.ceil(size / chunk)) for size, chunk in zip(shape, chunks, strict=True))):
        file = array_folder / (metadata.dimension_separator.join(map(str, position)) or "0")
        region = tuple(slice(i * chunk, min((i + 1) * chunk, size)) for i, chunk, size in zip(position, chunks, shape, strict=True))
        if file.is_file():
            chunk = _read_chunk(file, math.prod(chunks) * dtype.itemsize, compressed=metadata.compressor is not None)
            values = np.frombuffer(chunk, dtype).reshape(chunks, order=metadata.order)
            array[region] = values[tuple(slice(part.stop - part.start) for part in region)]  # the last chunk may extend beyond the array
        elif metadata.fill_value is not None:
            array[region] = metadata.fill_value
        else:
            raise T5XError(f"{file}: missing")
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if metadata.dtype == "bfloat16" else tensor


def _read_chunk(file: Path, size: int, *, compressed: bool) -> bytes:
    try:
        with gzip.open(file) if compressed else file.open("rb") as stream:
            data = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise T5XError(f"{file}: damaged ({error})") from error
    if len(data) != size:
        raise T5XError(f"{file}: {'more than ' if len(data) > size else ''}{min(len(data), size)} bytes where {size} are needed")
    return data


def write(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write parameters by their paths in the tree as a checkpoint of step 0, which `read` reads, each array in one gzipped chunk."""
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {}
    for name, value in weights.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = _description(name, _write_array(folder / f"target.{name}", value))
    index = {"version": 3, "optimizer": {"target": tree, "state": {"step": 0, "param_states": {}}}}
    (folder / INDEX).write_bytes(msgspec.msgpack.encode(index))


def _write_array(array_folder: Path, value: Tensor) -> dict[str, Any]:
    array_folder.mkdir()
    half = value.dtype is torch.bfloat16
    array = (value.view(torch.int16) if half else value).contiguous().numpy()
    metadata = {
        "zarr_format": 2,
        "shape": list(array.shape),
        "chunks": list(array.shape),
        "dtype": "bfloat16" if half else array.dtype.str,
        "order": "C",
        "compressor": {"id": "gzip", "level": 5},
        "filters": None,
        "fill_value": None,
        "dimension_separator": ".",
    }
    (array_folder / ".zarray").write_text(json.dumps(metadata))
    with gzip.open(array_folder / (".".join("0" for _ in array.shape) or "0"), "wb", compresslevel=5) as stream:
        stream.write(array.tobytes())
    return metadata


def _description(name: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the index entry of an array in a folder: TensorStore's specification."""
    dtype = metadata["dtype"]
    return {
        "driver": "zarr",
        "dtype": dtype if dtype == "bfloat16" else np.dtype(dtype).name,
        "kvstore": {"driver": "file", "path": f"target.{name}"},
        "metadata": {key: metadata[key] for key in ("shape", "chunks", "compressor")},
    }
