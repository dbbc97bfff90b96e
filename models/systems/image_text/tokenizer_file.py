"""A `tokenizer.json` of the library `tokenizers` from an untrusted source: entries that are not known to be harmless are refused.

The library trusts its files: a regular expression, a replacement or a vocabulary may be small in the file and cost minutes or gigabytes per
text. Kinds of normalizers, pre-tokenizers and post-processors are accepted from a list, regular expressions from published tokenizers
alone, and everything is bounded. Decoders, padding and truncation are not used and are dropped.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.systems.image_text.sentencepiece import SPACE
from models.systems.image_text.tokenizer_vocabulary import Json, TokenizerError, check_count, check_id, check_piece, read_ids

MAX_FILE_BYTES = 64 << 20
"""Maximum size of the file. XLM-R's has 9 MB."""
MAX_ADDED_TOKENS = 4096
MAX_SEQUENCE_PARTS = 8
"""Maximum number of normalizers, pre-tokenizers or post-processors in a sequence."""
MAX_SEQUENCE_DEPTH = 3
MAX_JSON_DEPTH = 12
MAX_GROWTH = 16
"""Maximum factor by which replacements may lengthen a text, all together."""
PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
"""ASCII's punctuation, which SigLIP removes from its texts."""
REGULAR_EXPRESSIONS = frozenset(
    {
        r"\s+",
        r" {2,}",
        # GPT-2
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        # CLIP's, and its form in `transformers` and OpenCLIP
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        PUNCTUATION,
        # GPT-4 and Llama 3
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
"""Patterns of published tokenizers, whose time grows linearly with the length of a text."""

CLEANING: tuple[Json, ...] = (
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"Regex": PUNCTUATION}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
)
"""Normalizers of SigLIP before the character map."""
NORMALIZERS = (
    *("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip", "Prepend", "Replace", "ByteLevel"),
    *("Precompiled", "Sequence"),
)
PRE_TOKENIZERS = (
    *(
        "BertPreTokenizer",
        "Whitespace",
        "WhitespaceSplit",
        "Punctuation",
        "Digits",
        "ByteLevel",
        "Metaspace",
        "Split",
        "CharDelimiterSplit",
    ),
    "Sequence",
)
POST_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence")


@dataclass(frozen=True)
class TokenizerFile:
    """The used parts of a `tokenizer.json`, checked."""

    model: Json
    normalizer: Json | None
    pre_tokenizer: Json | None
    added_tokens: Sequence[Json]
    post_processor: Json | None
    prefix_ids: tuple[int, ...]
    """Ids of the special tokens before a text."""
    suffix_ids: tuple[int, ...]
    """Ids of the special tokens after a text."""
    vocabulary: int
    """Number of rows that an embedding table needs: the highest id plus one."""

    def to_library_json(self) -> dict[str, Any]:
        """Return the JSON that the library reads."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": list(self.added_tokens),
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.post_processor,
            "decoder": None,
            "model": self.model,
        }

    def to_bytes(self) -> bytes:
        """Serialise the file for a bundle: the same content has the same bytes. Raises TokenizerError."""
        try:
            return (json.dumps(self.to_library_json(), ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"it has a lone surrogate ({error.object[error.start - 20 : error.start]!r}…)") from error

    @property
    def silent_ids(self) -> frozenset[int]:
        """Ids of pieces without meaning: that of all unknown words or characters, and pieces without visible characters, such as
        SentencePiece's bare space and the joiner between two emoji."""
        ids = read_ids(self.model)
        unknown = self.model["unk_id"] if self.model["type"] == "Unigram" else ids.get(self.model.get("unk_token") or "")
        invisible = {number for piece, number in ids.items() if not any(map(str.isprintable, piece.replace(SPACE, "")))}
        return frozenset(invisible if unknown is None else invisible | {unknown})

    @property
    def cleans(self) -> bool:
        """Whether `CLEANING` comes before the character map."""
        return _flatten(self.normalizer, "normalizers")[: len(CLEANING)] == list(CLEANING)

    @property
    def character_map(self) -> bytes | None:
        """Character map of SentencePiece models that cut texts as XLM-R's does (`models.systems.image_text.sentencepiece`); None for other
        models."""
        parts = _flatten(self.normalizer, "normalizers")
        found = next((part for part in parts if part["type"] == "Precompiled"), None)
        return None if found is None else base64.b64decode(found["precompiled_charsmap"])


def read_tokenizer(data: bytes) -> TokenizerFile:
    """Parse and check a `tokenizer.json`. Raises TokenizerError."""
    if len(data) > MAX_FILE_BYTES:
        raise TokenizerError(f"{len(data):,} bytes are more than {MAX_FILE_BYTES:,}")
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"not JSON of the library tokenizers ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise TokenizerError("model: an object is needed, as the library tokenizers writes it")
    return check_tokenizer(content)


def check_tokenizer(content: Json) -> TokenizerFile:
    """Check the content of a `tokenizer.json`. Raises TokenizerError for the first entry that is not accepted."""
    model = content["model"]
    for name in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor"):
        _check_depth(name, content.get(name))
    for name in model.keys() - {"vocab", "merges"}:
        _check_depth(f"model.{name}", model[name])
    added = _check_added_tokens(content.get("added_tokens") or [])
    ids = {**read_ids(model), **{token["content"]: token["id"] for token in added}}
    normalizer, pre_tokenizer = content.get("normalizer"), content.get("pre_tokenizer")
    _check_normalizers(normalizer)
    _check_pre_tokenizers(pre_tokenizer)
    if any(part["type"] == "Precompiled" for part in _flatten(normalizer, "normalizers")):
        _check_sentencepiece(model, normalizer, pre_tokenizer, added)
    prefix_ids, suffix_ids = _special_ids(content.get("post_processor"))
    return TokenizerFile(
        model=model,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        added_tokens=added,
        post_processor=content.get("post_processor"),
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        vocabulary=1 + max([*ids.values(), *prefix_ids, *suffix_ids]),
    )


def _check_depth(path: str, value: Any, depth: int = MAX_JSON_DEPTH) -> None:
    if isinstance(value, dict | list) and not depth:
        raise TokenizerError(f"{path}: objects and lists are more than {MAX_JSON_DEPTH} deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(path, inner, depth - 1)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_added_tokens(tokens: Any) -> list[Json]:
    if not isinstance(tokens, list):
        raise TokenizerError("added_tokens: a list is needed")
    check_count("added_tokens", len(tokens), MAX_ADDED_TOKENS, "tokens")
    for number, token in enumerate(tokens):
        if not isinstance(token, dict):
            raise TokenizerError(f"added_tokens.{number}: an object is needed")
        check_piece(f"added_tokens.{number}.content", token.get("content"))
        check_id(f"added_tokens.{number}.id", token.get("id"))
    return tokens


def _check_normalizers(normalizer: Any) -> None:
    growth = 1.0
    for path, part in _parts("normalizer", normalizer, "normalizers", NORMALIZERS):
        if part["type"] == "Replace":
            pattern = _pattern(f"{path}.pattern", part.get("pattern"))
            check_piece(f"{path}.content", part.get("content"), allow_empty=True)
            growth *= max(1.0, len(part["content"].encode()) / len(pattern.encode()))
        elif part["type"] == "Prepend":
            check_piece(f"{path}.prepend", part.get("prepend"))
        if growth > MAX_GROWTH:
            raise TokenizerError(f"{path}: replacements may lengthen a text {growth:.0f} times; at most {MAX_GROWTH} times is accepted")


def _check_pre_tokenizers(pre_tokenizer: Any) -> None:
    for path, part in _parts("pre_tokenizer", pre_tokenizer, "pretokenizers", PRE_TOKENIZERS):
        if part["type"] == "Split":
            _pattern(f"{path}.pattern", part.get("pattern"))


def _check_sentencepiece(model: Json, normalizer: Any, pre_tokenizer: Any, added: Sequence[Json]) -> None:
    """Check that a character map comes with the other parts of XLM-R's file, as SentencePiece models do."""
    normalizers = [part if part["type"] == "Precompiled" else _drop_nulls(part) for part in _flatten(normalizer, "normalizers")]
    if tuple(normalizers[: len(CLEANING)]) == CLEANING:
        normalizers = normalizers[len(CLEANING) :]
    collapse = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if not normalizers or normalizers[0]["type"] != "Precompiled" or normalizers[1:] not in ([], [collapse]):
        raise TokenizerError("normalizer: Precompiled is accepted as the first, followed by nothing, or by the Replace of ' {2,}' with ' '")
    try:
        base64.b64decode(normalizers[0].get("precompiled_charsmap", ""), validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise TokenizerError(f"normalizer.precompiled_charsmap: not base64 ({error})") from error
    splits = [part["type"] for part in _flatten(pre_tokenizer, "pretokenizers")]
    metaspace = next((part for part in _flatten(pre_tokenizer, "pretokenizers") if part["type"] == "Metaspace"), {})
    if model["type"] != "Unigram" or splits not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise TokenizerError("normalizer: Precompiled is accepted with model Unigram and pre_tokenizer Metaspace, as in XLM-R's file")
    always = metaspace.get("prepend_scheme", "always") == "always" and metaspace.get("add_prefix_space", True)
    if metaspace.get("replacement") != "▁" or not always:
        raise TokenizerError("pre_tokenizer: Metaspace must have replacement '▁' and prepend_scheme 'always', as in XLM-R's file")
    ordinary = next((token["content"] for token in added if not token.get("special")), None)
    if ordinary is not None:
        raise TokenizerError(f"added_tokens: {ordinary!r} is not special, and only special ones are accepted with a character map")
    if model.get("byte_fallback"):
        raise TokenizerError("model.byte_fallback: true is not accepted with a character map")


def _drop_nulls(part: Json) -> Json:
    return {key: value for key, value in part.items() if value is not None}


def _special_ids(processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of the special tokens before and after a text."""
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    for path, part in _parts("post_processor", processor, "processors", POST_PROCESSORS):
        if part["type"] == "TemplateProcessing":
            first, last = _template(path, part)
        elif part["type"] in ("BertProcessing", "RobertaProcessing"):
            first, last = ((_pair(f"{path}.{name}", part.get(name)),) for name in ("cls", "sep"))
        else:
            continue
        prefix_ids, suffix_ids = first + prefix_ids, suffix_ids + last
    return prefix_ids, suffix_ids


def _template(path: str, part: Json) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tokens = part.get("special_tokens")
    entries = part.get("single")
    if not isinstance(entries, list) or not isinstance(tokens, dict) or len(entries) > MAX_SEQUENCE_PARTS:
        raise TokenizerError(f"{path}: single, a list of at most {MAX_SEQUENCE_PARTS}, and special_tokens are needed")
    sides: tuple[list[int], list[int]] = [], []
    sequences = 0
    for number, entry in enumerate(entries):
        if isinstance(entry, dict) and "Sequence" in entry:
            sequences += 1
            continue
        try:
            ids = tokens[entry["SpecialToken"]["id"]]["ids"]
        except (KeyError, TypeError) as error:
            raise TokenizerError(f"{path}.single.{number}: a Sequence, or a SpecialToken of special_tokens, is needed") from error
        if not isinstance(ids, list) or len(ids) > MAX_SEQUENCE_PARTS:
            raise TokenizerError(f"{path}.single.{number}: a list of at most {MAX_SEQUENCE_PARTS} ids is needed")
        for found in ids:
            check_id(f"{path}.single.{number}", found)
        sides[min(sequences, 1)].extend(ids)
    if sequences != 1:
        raise TokenizerError(f"{path}.single: exactly one Sequence is needed, found {sequences}")
    return tuple(sides[0]), tuple(sides[1])


def _pair(path: str, value: Any) -> int:
    if not isinstance(value, list) or len(value) != 2:
        raise TokenizerError(f"{path}: [token, id] is needed")
    check_id(path, value[1])
    return int(value[1])


def _pattern(path: str, pattern: Any) -> str:
    """Return the shortest text that a pattern replaces or splits at."""
    if isinstance(pattern, dict) and list(pattern) == ["String"]:
        check_piece(path, pattern["String"])
        return str(pattern["String"])
    if isinstance(pattern, dict) and list(pattern) == ["Regex"]:
        if not isinstance(pattern["Regex"], str) or pattern["Regex"] not in REGULAR_EXPRESSIONS:
            raise TokenizerError(f"{path}: {str(pattern['Regex'])[:80]!r} is not accepted; only GPT-2's, CLIP's and GPT-4's patterns are")
        return " "
    raise TokenizerError(f"{path}: an object with String or Regex is needed")


def _parts(path: str, entry: Any, name: str, kinds: Sequence[str], depth: int = 0) -> list[tuple[str, Json]]:
    """Return the entries of a sequence, or the only entry, each with its path; all of accepted kinds."""
    if entry is None:
        return []
    if not isinstance(entry, dict) or entry.get("type") not in kinds:
        kind = entry.get("type") if isinstance(entry, dict) else entry
        raise TokenizerError(f"{path}.type: {str(kind)[:80]!r} is not accepted; accepted are {', '.join(kinds)}")
    if entry["type"] != "Sequence":
        return [(path, entry)]
    inner = entry.get(name)
    if not isinstance(inner, list) or len(inner) > MAX_SEQUENCE_PARTS or depth >= MAX_SEQUENCE_DEPTH:
        raise TokenizerError(f"{path}.{name}: a list of at most {MAX_SEQUENCE_PARTS}, at most {MAX_SEQUENCE_DEPTH} deep, is needed")
    return [found for number, part in enumerate(inner) for found in _parts(f"{path}.{name}.{number}", part, name, kinds, depth + 1)]


def _flatten(entry: Any, name: str) -> list[Json]:
    """Return the entries of a checked sequence."""
    if entry is None:
        return []
    return [found for part in entry[name] for found in _flatten(part, name)] if entry["type"] == "Sequence" else [entry]
