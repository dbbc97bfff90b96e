"""Reader of SentencePiece's model files (sentencepiece_model.proto), of which only unigram models of XLM-R's kind are accepted.

The file is a Protocol Buffers message. It is parsed by hand: the four kinds of fields on the wire are simpler than a dependency whose
generated code must match the version of its library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL = 1, 2, 3
"""`SentencePiece.Type` of the accepted pieces; user-defined, unused and byte pieces (4, 5, 6) are refused."""
UNIGRAM = 1
"""`TrainerSpec.ModelType`."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: tuple[tuple[str, float, int], ...]
    """Text, score (natural logarithm of its probability, float32) and type of each piece, in the order of their ids."""
    character_map: bytes
    """`NormalizerSpec.precompiled_charsmap`; see `models.systems.image_text.sentencepiece_normalizer`."""


class ModelFileError(ValueError):
    """Error of a file that is not an accepted SentencePiece model; the message says why."""


def read_model(data: bytes) -> SentencePieceModel:
    """Parse a model file. Raises ModelFileError."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(number, value)))
        elif number == 2:
            trainer |= dict(_fields(_message(number, value)))
        elif number == 3:
            normalizer |= dict(_fields(_message(number, value)))
    if not pieces:
        raise ModelFileError("it has no pieces")
    _check(trainer, normalizer)
    character_map = normalizer.get(2, b"")
    if not isinstance(character_map, bytes) or not character_map:
        raise ModelFileError("normalizer_spec.precompiled_charsmap is missing, and only models with a character map, as XLM-R's, are taken")
    return SentencePieceModel(tuple(pieces), character_map)


def _check(trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes]) -> None:
    """Refuse models whose texts are normalised or cut in other ways than XLM-R's. Missing fields have the format's defaults."""
    required = (
        ("trainer_spec.model_type", trainer.get(3, UNIGRAM), UNIGRAM, "unigram"),
        ("trainer_spec.treat_whitespace_as_suffix", trainer.get(24, 0), 0, "false"),
        ("trainer_spec.byte_fallback", trainer.get(35, 0), 0, "false"),
        ("normalizer_spec.add_dummy_prefix", normalizer.get(3, 1), 1, "true"),
        ("normalizer_spec.remove_extra_whitespaces", normalizer.get(4, 1), 1, "true"),
        ("normalizer_spec.escape_whitespaces", normalizer.get(5, 1), 1, "true"),
    )
    for name, found, value, word in required:
        if found != value:
            raise ModelFileError(f"{name} is {found!r}; only {word} is taken, as in XLM-R's model")


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    text, score, kind = fields.get(1, b""), fields.get(2, 0), fields.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, int) or not isinstance(kind, int):
        raise ModelFileError("a piece has fields of other types than SentencePiece's")
    if kind not in (NORMAL, UNKNOWN, CONTROL):
        raise ModelFileError(f"piece {text!r} is of type {kind}; only normal, unknown and control pieces (1, 2, 3) are taken")
    try:
        return text.decode(), struct.unpack("<f", struct.pack("<I", score))[0], kind
    except (UnicodeDecodeError, struct.error) as error:
        raise ModelFileError(f"piece {text!r}: {error}") from error


def _message(number: int, value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ModelFileError(f"field {number} is not a message")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message. Floats come as the integer of their bits."""
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, offset = _varint(data, offset)
            yield number, value
            continue
        if kind == _BYTES:
            size, offset = _varint(data, offset)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ModelFileError(f"byte {offset}: no field of a SentencePiece model starts here")
        content = data[offset : offset + size]
        if len(content) != size:
            raise ModelFileError(f"it ends at byte {len(data)}, in the middle of a field: truncated or another file")
        yield number, content if kind == _BYTES else int.from_bytes(content, "little")
        offset += size


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return a varint and the offset of its end."""
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(data):
            raise ModelFileError(f"it ends at byte {len(data)}, in the middle of a number: truncated or another file")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    raise ModelFileError(f"byte {offset}: a number of more than ten bytes")
