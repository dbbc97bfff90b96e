"""Published tokenizers → the form that bundles have, `tokenizer.json` (`models.systems.image_text.tokenizer_file`).

Accepted are a `tokenizer.json`; BERT's `vocab.txt`; CLIP's `vocab.json` with `merges.txt`; the SentencePiece model of XLM-R or SigLIP.
Nothing pickled is opened.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.systems.image_text.sentencepiece import ModelFileError, SentencePieceModel, read_model
from models.systems.image_text.tokenizer_file import CLEANING, MAX_FILE_BYTES, TokenizerFile, check_tokenizer, read_tokenizer
from models.systems.image_text.tokenizer_vocabulary import TokenizerError

ACCEPTED = "a tokenizer.json, BERT's vocab.txt, CLIP's vocab.json with merges.txt beside it, or the SentencePiece .model of XLM-R or SigLIP"
PICKLED_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".npy", ".npz"})
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
XLMR_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""Special tokens of XLM-R, ids 0 to 3. SentencePiece's own three are <unk>, <s> and </s>, so its other pieces move up by one."""
XLMR_MASK = "<mask>"
SIGLIP_SPECIAL = ("<pad>", "</s>", "<unk>")
"""Special tokens of SigLIP, ids 0 to 2, SentencePiece's own. Texts are padded with </s>."""
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}

Json = dict[str, Any]


def read_vocabulary(path: Path, *, special: bool = True) -> TokenizerFile:
    """Read and check a published tokenizer. Raises TokenizerError, which names the file.

    path: a file, or a folder that contains it. special: whether its special tokens frame a text; if not (FLIP), they are not recognised in
    texts either.
    """
    file = _find_file(path)
    try:
        tokenizer = _read_any(file)
        return tokenizer if special else _drop_special(tokenizer)
    except (TokenizerError, ModelFileError) as error:
        raise TokenizerError(f"{file}: {error}") from error


def read_templates(path: Path) -> list[str]:
    """Read templates for labels: a text file with one per line, a JSON list, or a bundle.json. Raises TokenizerError."""
    _refuse_pickled(path, "a text file in UTF-8 with one template in each line")
    text = _read_text(path)
    if path.suffix != ".json":
        return [line.strip() for line in text.split("\n") if line.strip()]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON ({error})") from error
    if isinstance(content, dict):
        content = (content.get("text") or {}).get("templates")
    if not isinstance(content, list) or not all(isinstance(template, str) for template in content):
        raise TokenizerError(f"{path}: a JSON list of templates, or a bundle.json with some, is needed")
    return content


def _find_file(path: Path) -> Path:
    """Return the file that determines the kind of tokenizer."""
    if not path.is_dir():
        _refuse_pickled(path, ACCEPTED)
        return path
    names = ("spiece.model", "tokenizer.json", "vocab.json", "vocab.txt", *sorted(file.name for file in path.glob("*.model")))
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise TokenizerError(f"{path}: contains no tokenizer; give {ACCEPTED}")
    return found


def _refuse_pickled(path: Path, instead: str) -> None:
    if path.suffix in PICKLED_SUFFIXES:
        raise TokenizerError(f"{path}: pickled files are never opened, since they can run code: give {instead}")


def _read_any(file: Path) -> TokenizerFile:
    if file.suffix == ".model":
        return check_tokenizer(_convert_sentencepiece(_read_bytes(file)))
    if file.name == "merges.txt":
        return check_tokenizer(_convert_clip(file.with_name("vocab.json"), file))
    if file.suffix == ".txt":
        return check_tokenizer(_convert_bert(_read_text(file)))
    if file.name == "vocab.json":
        return check_tokenizer(_convert_clip(file, file.with_name("merges.txt")))
    if file.suffix == ".json":
        return read_tokenizer(_read_bytes(file))
    raise TokenizerError(f"a file *{file.suffix} is not an accepted tokenizer; give {ACCEPTED}")


def _convert_bert(text: str) -> Json:
    """Convert BERT's uncased vocabulary (arXiv 1810.04805): one piece per line, whose index is its id."""
    pieces = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    ids = {piece: number for number, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        duplicate = next(number for number, piece in enumerate(pieces) if ids[piece] != number)
        raise TokenizerError(f"line {duplicate + 1}: {pieces[duplicate]!r} is also in line {ids[pieces[duplicate]] + 1}")
    _require_pieces(ids, ("[UNK]", "[CLS]", "[SEP]"), "BERT's vocab.txt")
    return {
        "added_tokens": _added_tokens({piece: ids[piece] for piece in BERT_SPECIAL if piece in ids}),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _frame("[CLS]", ids["[CLS]"], "[SEP]", ids["[SEP]"]),
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }


def _convert_clip(vocabulary: Path, merges: Path) -> Json:
    """Convert CLIP's vocabulary (arXiv 2103.00020): merges of pairs of bytes; words end in </w>."""
    try:
        ids = json.loads(_read_text(vocabulary))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{vocabulary}: not JSON ({error})") from error
    if not isinstance(ids, dict):
        raise TokenizerError(f"{vocabulary}: an object {{piece: id}} is needed")
    _require_pieces(ids, (CLIP_START, CLIP_END), "CLIP's vocab.json")
    lines = [line.rstrip("\r") for line in _read_text(merges).split("\n")]
    return {
        "added_tokens": _added_tokens({CLIP_START: ids[CLIP_START], CLIP_END: ids[CLIP_END]}),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": CLIP_PATTERN}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": _frame(CLIP_START, ids[CLIP_START], CLIP_END, ids[CLIP_END]),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": CLIP_END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": ids,
            "merges": [line for line in lines if line and not line.startswith("#version")],
        },
    }


def _convert_sentencepiece(data: bytes) -> Json:
    """Convert a SentencePiece model of XLM-R or SigLIP, which differ in their first pieces."""
    model = read_model(data)
    first_pieces = tuple(piece for piece, _, _ in model.pieces[:3])
    if first_pieces == SIGLIP_SPECIAL:
        return _convert_siglip(model)
    if first_pieces != ("<unk>", "<s>", "</s>"):
        raise ModelFileError(
            f"its first pieces are {list(first_pieces)}, neither <unk>, <s>, </s> as in XLM-R's, nor <pad>, </s> and <unk> as in SigLIP's"
        )
    return _convert_xlmr(model)


def _convert_siglip(model: SentencePieceModel) -> Json:
    """Convert SigLIP's model (arXiv 2303.15343): lowercase without punctuation, SentencePiece's pieces, and </s> after them."""
    end = SIGLIP_SPECIAL.index("</s>")
    return {
        "added_tokens": _added_tokens({piece: number for number, piece in enumerate(SIGLIP_SPECIAL)}),
        "normalizer": {"type": "Sequence", "normalizers": [*CLEANING, _character_map(model)]},
        "pre_tokenizer": METASPACE,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [end], "tokens": ["</s>"]}},
        },
        "model": {
            "type": "Unigram",
            "unk_id": SIGLIP_SPECIAL.index("<unk>"),
            "vocab": [[piece, score] for piece, score, _ in model.pieces],
            "byte_fallback": False,
        },
    }


def _character_map(model: SentencePieceModel) -> Json:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.character_map).decode()}


def lowercase(file: TokenizerFile) -> TokenizerFile:
    if file.cleans:
        return file
    normalizers = [{"type": "Lowercase"}, *([] if file.normalizer is None else [file.normalizer])]
    return check_tokenizer({**file.to_library_json(), "normalizer": {"type": "Sequence", "normalizers": normalizers}})


def _convert_xlmr(model: SentencePieceModel) -> Json:
    """Convert XLM-R's model (arXiv 1911.02116): SentencePiece's pieces from the fourth on, one id higher, and <mask> as the last."""
    pieces = [[piece, score] for piece, score, _ in model.pieces[3:]]
    mask = len(XLMR_SPECIAL) + len(pieces)
    ids = {piece: number for number, piece in enumerate(XLMR_SPECIAL)} | {XLMR_MASK: mask}
    return {
        "added_tokens": _added_tokens(ids),
        "normalizer": _character_map(model),
        "pre_tokenizer": METASPACE,
        "post_processor": _frame("<s>", 0, "</s>", 2),
        "model": {
            "type": "Unigram",
            "unk_id": XLMR_SPECIAL.index("<unk>"),
            "vocab": [*([piece, 0.0] for piece in XLMR_SPECIAL), *pieces, [XLMR_MASK, 0.0]],
            "byte_fallback": False,
        },
    }


def _drop_special(file: TokenizerFile) -> TokenizerFile:
    ordinary = [token for token in file.added_tokens if not token.get("special")]
    return check_tokenizer({**file.to_library_json(), "post_processor": None, "added_tokens": ordinary})


def _added_tokens(ids: Mapping[str, int]) -> list[Json]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": number, "content": piece, **flags, "special": True} for piece, number in sorted(ids.items(), key=lambda item: item[1])]


def _frame(first: str, first_id: int, last: str, last_id: int) -> Json:
    """Return the post-processor that puts special tokens around a text."""
    sides = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (first, last)]
    tokens = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in ((first, first_id), (last, last_id))}
    sequences = [{"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1))]
    single = [sides[0], sequences[0], sides[1]]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, sequences[1], sides[1]], "special_tokens": tokens}


def _require_pieces(ids: Mapping[str, Any], pieces: Sequence[str], kind: str) -> None:
    missing = [piece for piece in pieces if piece not in ids]
    if missing:
        raise TokenizerError(f"{', '.join(missing)} is missing; {kind} has it")


def _read_bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_FILE_BYTES:
        raise TokenizerError(f"{file}: more than {MAX_FILE_BYTES:,} bytes")
    return data


def _read_text(file: Path) -> str:
    try:
        return _read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file}: not text in UTF-8 ({error.reason} at byte {error.start})") from error
