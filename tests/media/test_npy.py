"""Files that claim to be `.npy` are read or refused with a reason."""

from __future__ import annotations

import io

import numpy as np
import pytest

from server.media import npy
from server.media.limits import InvalidPart

FLOATS = np.arange(12, dtype=np.float32).reshape(3, 4)


def file(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def with_header(header: str) -> bytes:
    text = header.encode("latin-1")
    return npy.MAGIC + bytes([1, 0]) + len(text).to_bytes(2, "little") + text + bytes(64)


def with_shape(shape: str) -> bytes:
    return with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n")


@pytest.mark.parametrize("array", [FLOATS, np.asfortranarray(FLOATS), FLOATS.astype(">f8"), FLOATS.astype(np.float16), FLOATS[:0]])
def test_floats_are_read_as_they_were_saved(array: np.ndarray) -> None:
    data = file(array)

    assert np.array_equal(npy.read(data, npy.read_header(data)), array)


@pytest.mark.parametrize(
    "data",
    [
        *(
            with_header(text)
            for text in ("", "(" * 3000, "[" * 150, '"""', "{", "{[]: 1}", "{1: 2, 'a': 3}", "{'a': 1, b'a': 2}", "-" * 5000 + "1")
        ),
        *(
            with_shape(text)
            for text in ("(-4, -4)", "(-1,)", "(True, 16)", "(4, 4.0)", f"({'9' * 4000}, {'9' * 4000})", f"({'1, ' * 40})", "(2L, (2L")
        ),
        *(
            with_header(f"{{'descr': {text}, 'fortran_order': False, 'shape': (16,)}}\n")
            for text in ("()", "((),)", "[('a', [('b', ())])]")
        ),
    ],
)
def test_a_header_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidPart, match=r"header can be read") as refused:
        npy.read_header(data)

    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_header_is_refused_or_read(seed: int) -> None:
    chance, intact = np.random.default_rng(seed), file(FLOATS)
    end = len(intact) - FLOATS.nbytes
    for _ in range(50):
        damaged = bytearray(intact)
        for place in chance.integers(len(npy.MAGIC), end, chance.integers(1, 6)):
            damaged[place] = chance.choice(np.frombuffer(b"()[]{},:'\"0123456789-+*.jLf \\\n\0#", np.uint8))
        try:
            npy.read(bytes(damaged), npy.read_header(bytes(damaged)))
        except InvalidPart:
            continue
