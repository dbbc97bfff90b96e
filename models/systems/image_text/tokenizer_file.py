"""A `tokenizer.json` of the library `tokenizers`, read as a stranger's: what is not known to be harmless is refused.

The library trusts its files: a regular expression, a replacement or a vocabulary may be small in the file and cost minutes or gigabytes
of each text. Kinds of normalisers, pre-tokenizers and post-processors are taken from a list, regular expressions from published
tokenizers alone, and everything is bounded. Decoders, padding and truncation are not used and are left out.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.systems.image_text.sentencepiece_normalizer import SPACE
from models.systems.image_text.tokenizer_vocabulary import Json, TokenizerError, at_most, check_id, check_piece, ids_of

MOST_BYTES = 64 << 20
"""Size of the file. XLM-R's has 9 MB."""
MOST_ADDED = 4096
"""Number of added tokens."""
MOST_PARTS = 8
"""Normalisers, pre-tokenizers or post-processors in a sequence."""
DEEPEST = 3
"""Sequences in each other."""
DEEPEST_JSON = 12
"""Objects and lists in each other."""
MOST_GROWTH = 16
"""Factor by which replacements may lengthen a text, all together."""
PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
"""ASCII's, which SigLIP takes out of its texts."""
REGULAR_EXPRESSIONS = frozenset(
    {
        r"\s+",
        r" {2,}",
        # GPT-2
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        # CLIP, and as `transformers` and OpenCLIP write it
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        PUNCTUATION,
        # GPT-4 and Llama 3
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
"""Patterns of published tokenizers, whose time grows with the length of a text and no faster."""

CLEANING: tuple[Json, ...] = (
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"Regex": PUNCTUATION}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
)
"""SigLIP's, before a character map."""
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
    before: tuple[int, ...]
    """Ids of the special tokens that begin a text."""
    after: tuple[int, ...]
    """Ids of those that end it."""
    vocabulary: int
    """Rows that a table of embeddings needs: the highest id and one."""

    @property
    def content(self) -> dict[str, Any]:
        """As JSON, in the library's form."""
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
        """The file as bundles hold it: the same content has the same bytes. Raises TokenizerError."""
        try:
            return (json.dumps(self.content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"it has a lone surrogate ({error.object[error.start - 20 : error.start]!r}…)") from error

    @property
    def speechless(self) -> frozenset[int]:
        """Ids of the pieces that say nothing about a text: the one of all unknown words or characters, and those in which nothing can be
        seen, such as SentencePiece's bare space and the joiner between two emoji."""
        ids = ids_of(self.model)
        unknown = self.model["unk_id"] if self.model["type"] == "Unigram" else ids.get(self.model.get("unk_token") or "")
        unseen = {number for piece, number in ids.items() if not any(map(str.isprintable, piece.replace(SPACE, "")))}
        return frozenset(unseen if unknown is None else unseen | {unknown})

    @property
    def cleans(self) -> bool:
        """Whether `CLEANING` comes before the character map."""
        return _flat(self.normalizer, "normalizers")[: len(CLEANING)] == list(CLEANING)

    @property
    def character_map(self) -> bytes | None:
        """SentencePiece's, of models that cut texts as XLM-R does (`models.systems.image_text.unigram`); None for the library's own."""
        parts = _flat(self.normalizer, "normalizers")
        found = next((part for part in parts if part["type"] == "Precompiled"), None)
        return None if found is None else base64.b64decode(found["precompiled_charsmap"])


def read_tokenizer(data: bytes) -> TokenizerFile:
    """Raises TokenizerError."""
    if len(data) > MOST_BYTES:
        raise TokenizerError(f"{len(data):,} bytes are more than {MOST_BYTES:,}")
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"no JSON of the library tokenizers ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise TokenizerError("model: an object is needed, as the library tokenizers writes it")
    return check_tokenizer(content)


def check_tokenizer(content: Json) -> TokenizerFile:
    """Raises TokenizerError for the first entry that is not taken."""
    model = content["model"]
    for name in ("added_tokens", "normalizer", "pre_tokenizer", "post_processor"):
        _shallow(name, content.get(name))
    for name in model.keys() - {"vocab", "merges"}:
        _shallow(f"model.{name}", model[name])
    added = _added_tokens(content.get("added_tokens") or [])
    ids = {**ids_of(model), **{token["content"]: token["id"] for token in added}}
    normalizer, pre_tokenizer = content.get("normalizer"), content.get("pre_tokenizer")
    _check_normalizers(normalizer)
    _check_pre_tokenizers(pre_tokenizer)
    if any(part["type"] == "Precompiled" for part in _flat(normalizer, "normalizers")):
        _check_sentencepiece(model, normalizer, pre_tokenizer, added)
    before, after = _special(content.get("post_processor"))
    return TokenizerFile(
        model=model,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        added_tokens=added,
        post_processor=content.get("post_processor"),
        before=before,
        after=after,
        vocabulary=1 + max([*ids.values(), *before, *after]),
    )


def _shallow(where: str, value: Any, depth: int = DEEPEST_JSON) -> None:
    if isinstance(value, dict | list) and not depth:
        raise TokenizerError(f"{where}: objects and lists are more than {DEEPEST_JSON} deep")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _shallow(where, inner, depth - 1)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _added_tokens(tokens: Any) -> list[Json]:
    if not isinstance(tokens, list):
        raise TokenizerError("added_tokens: a list is needed")
    at_most("added_tokens", len(tokens), MOST_ADDED, "tokens")
    for number, token in enumerate(tokens):
        if not isinstance(token, dict):
            raise TokenizerError(f"added_tokens.{number}: an object is needed")
        check_piece(f"added_tokens.{number}.content", token.get("content"))
        check_id(f"added_tokens.{number}.id", token.get("id"))
    return tokens


def _check_normalizers(normalizer: Any) -> None:
    growth = 1.0
    for where, part in _parts("normalizer", normalizer, "normalizers", NORMALIZERS):
        if part["type"] == "Replace":
            pattern = _pattern(f"{where}.pattern", part.get("pattern"))
            check_piece(f"{where}.content", part.get("content"), empty=True)
            growth *= max(1.0, len(part["content"].encode()) / len(pattern.encode()))
        elif part["type"] == "Prepend":
            check_piece(f"{where}.prepend", part.get("prepend"))
        if growth > MOST_GROWTH:
            raise TokenizerError(f"{where}: replacements may lengthen a text {growth:.0f} times; at most {MOST_GROWTH} times is taken")


def _check_pre_tokenizers(pre_tokenizer: Any) -> None:
    for where, part in _parts("pre_tokenizer", pre_tokenizer, "pretokenizers", PRE_TOKENIZERS):
        if part["type"] == "Split":
            _pattern(f"{where}.pattern", part.get("pattern"))


def _check_sentencepiece(model: Json, normalizer: Any, pre_tokenizer: Any, added: Sequence[Json]) -> None:
    """A character map means SentencePiece, and is taken with what stands beside it in XLM-R's file."""
    normalizers = [part if part["type"] == "Precompiled" else _bare(part) for part in _flat(normalizer, "normalizers")]
    if tuple(normalizers[: len(CLEANING)]) == CLEANING:
        normalizers = normalizers[len(CLEANING) :]
    collapse = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if not normalizers or normalizers[0]["type"] != "Precompiled" or normalizers[1:] not in ([], [collapse]):
        raise TokenizerError("normalizer: Precompiled is taken as the first, followed by nothing, or by the Replace of ' {2,}' with ' '")
    try:
        base64.b64decode(normalizers[0].get("precompiled_charsmap", ""), validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise TokenizerError(f"normalizer.precompiled_charsmap: no base64 ({error})") from error
    splits = [part["type"] for part in _flat(pre_tokenizer, "pretokenizers")]
    metaspace = next((part for part in _flat(pre_tokenizer, "pretokenizers") if part["type"] == "Metaspace"), {})
    if model["type"] != "Unigram" or splits not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise TokenizerError("normalizer: Precompiled is taken with model Unigram and pre_tokenizer Metaspace, as in XLM-R's file")
    always = metaspace.get("prepend_scheme", "always") == "always" and metaspace.get("add_prefix_space", True)
    if metaspace.get("replacement") != "▁" or not always:
        raise TokenizerError("pre_tokenizer: Metaspace must have replacement '▁' and prepend_scheme 'always', as in XLM-R's file")
    ordinary = next((token["content"] for token in added if not token.get("special")), None)
    if ordinary is not None:
        raise TokenizerError(f"added_tokens: {ordinary!r} is not special, and only special ones are taken with a character map")
    if model.get("byte_fallback"):
        raise TokenizerError("model.byte_fallback: true is not taken with a character map")


def _bare(part: Json) -> Json:
    return {key: value for key, value in part.items() if value is not None}


def _special(processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the special tokens before and behind a text."""
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    for where, part in _parts("post_processor", processor, "processors", POST_PROCESSORS):
        if part["type"] == "TemplateProcessing":
            first, last = _template(where, part)
        elif part["type"] in ("BertProcessing", "RobertaProcessing"):
            first, last = ((_pair(f"{where}.{name}", part.get(name)),) for name in ("cls", "sep"))
        else:
            continue
        before, after = first + before, after + last
    return before, after


def _template(where: str, part: Json) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tokens = part.get("special_tokens")
    entries = part.get("single")
    if not isinstance(entries, list) or not isinstance(tokens, dict) or len(entries) > MOST_PARTS:
        raise TokenizerError(f"{where}: single, a list of at most {MOST_PARTS}, and special_tokens are needed")
    sides: tuple[list[int], list[int]] = [], []
    sequences = 0
    for number, entry in enumerate(entries):
        if isinstance(entry, dict) and "Sequence" in entry:
            sequences += 1
            continue
        try:
            ids = tokens[entry["SpecialToken"]["id"]]["ids"]
        except (KeyError, TypeError) as error:
            raise TokenizerError(f"{where}.single.{number}: a Sequence, or a SpecialToken of special_tokens, is needed") from error
        if not isinstance(ids, list) or len(ids) > MOST_PARTS:
            raise TokenizerError(f"{where}.single.{number}: a list of at most {MOST_PARTS} ids is needed")
        for found in ids:
            check_id(f"{where}.single.{number}", found)
        sides[min(sequences, 1)].extend(ids)
    if sequences != 1:
        raise TokenizerError(f"{where}.single: exactly one Sequence is needed, found {sequences}")
    return tuple(sides[0]), tuple(sides[1])


def _pair(where: str, value: Any) -> int:
    if not isinstance(value, list) or len(value) != 2:
        raise TokenizerError(f"{where}: [token, id] is needed")
    check_id(where, value[1])
    return int(value[1])


def _pattern(where: str, pattern: Any) -> str:
    """The shortest text that a pattern replaces or splits at."""
    if isinstance(pattern, dict) and list(pattern) == ["String"]:
        check_piece(where, pattern["String"])
        return str(pattern["String"])
    if isinstance(pattern, dict) and list(pattern) == ["Regex"]:
        if not isinstance(pattern["Regex"], str) or pattern["Regex"] not in REGULAR_EXPRESSIONS:
            raise TokenizerError(f"{where}: {str(pattern['Regex'])[:80]!r} is not taken; only GPT-2's, CLIP's and GPT-4's patterns are")
        return " "
    raise TokenizerError(f"{where}: an object with String or Regex is needed")


def _parts(where: str, entry: Any, name: str, kinds: Sequence[str], depth: int = 0) -> list[tuple[str, Json]]:
    """The entries of a sequence, or the one that there is, each with where it stands; all of kinds that are taken."""
    if entry is None:
        return []
    if not isinstance(entry, dict) or entry.get("type") not in kinds:
        kind = entry.get("type") if isinstance(entry, dict) else entry
        raise TokenizerError(f"{where}.type: {str(kind)[:80]!r} is not taken; taken are {', '.join(kinds)}")
    if entry["type"] != "Sequence":
        return [(where, entry)]
    inner = entry.get(name)
    if not isinstance(inner, list) or len(inner) > MOST_PARTS or depth >= DEEPEST:
        raise TokenizerError(f"{where}.{name}: a list of at most {MOST_PARTS}, at most {DEEPEST} deep, is needed")
    return [found for number, part in enumerate(inner) for found in _parts(f"{where}.{name}.{number}", part, name, kinds, depth + 1)]


def _flat(entry: Any, name: str) -> list[Json]:
    """The entries of a checked sequence."""
    if entry is None:
        return []
    return [found for part in entry[name] for found in _flat(part, name)] if entry["type"] == "Sequence" else [entry]
