"""Tokenisers as they were published → the one form that bundles hold, `tokenizer.json` (`models.systems.image_text.tokenizer_file`).

Taken are a `tokenizer.json`; BERT's `vocab.txt`; CLIP's `vocab.json` with `merges.txt`; the SentencePiece model of XLM-R or
SigLIP. Nothing pickled is opened.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.systems.image_text.sentencepiece_model import ModelFileError, SentencePieceModel, read_model
from models.systems.image_text.tokenizer_file import CLEANING, MOST_BYTES, TokenizerFile, check_tokenizer, read_tokenizer
from models.systems.image_text.tokenizer_vocabulary import TokenizerError

TAKEN = "a tokenizer.json, BERT's vocab.txt, CLIP's vocab.json with merges.txt beside it, or the SentencePiece .model of XLM-R or SigLIP"
PICKLED = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".npy", ".npz"})
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
XLMR_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""Ids 0 to 3. SentencePiece's own three are <unk>, <s> and </s>, so that its other pieces move up by one."""
XLMR_MASK = "<mask>"
SIGLIP_SPECIAL = ("<pad>", "</s>", "<unk>")
"""Ids 0 to 2, SentencePiece's own. Texts are filled up with </s>."""
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}

Json = dict[str, Any]


def read_vocabulary(path: Path, *, special: bool = True) -> TokenizerFile:
    """A published tokenizer, checked. path: a file, or a folder that holds it. special: whether its special tokens frame a text; if
    not (FLIP), they are not found in texts either. Raises TokenizerError, which names the file."""
    file = _found(path)
    try:
        read = _read(file)
        return read if special else _without_special(read)
    except (TokenizerError, ModelFileError) as error:
        raise TokenizerError(f"{file}: {error}") from error


def read_templates(path: Path) -> list[str]:
    """Templates for labels: a text file with one in each line, a JSON list, or a bundle.json. Raises TokenizerError."""
    _refuse_pickled(path, "a text file in UTF-8 with one template in each line")
    text = _decoded(path)
    if path.suffix != ".json":
        return [line.strip() for line in text.split("\n") if line.strip()]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: no JSON ({error})") from error
    if isinstance(found, dict):
        found = (found.get("text") or {}).get("templates")
    if not isinstance(found, list) or not all(isinstance(template, str) for template in found):
        raise TokenizerError(f"{path}: a JSON list of templates, or a bundle.json with some, is needed")
    return found


def _found(path: Path) -> Path:
    """The file that tells which kind it is."""
    if not path.is_dir():
        _refuse_pickled(path, TAKEN)
        return path
    names = ("spiece.model", "tokenizer.json", "vocab.json", "vocab.txt", *sorted(file.name for file in path.glob("*.model")))
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise TokenizerError(f"{path}: holds no tokenizer; give {TAKEN}")
    return found


def _refuse_pickled(path: Path, instead: str) -> None:
    if path.suffix in PICKLED:
        raise TokenizerError(f"{path}: pickled files are never opened, since they can run code: give {instead}")


def _read(file: Path) -> TokenizerFile:
    if file.suffix == ".model":
        return check_tokenizer(_sentencepiece(_bytes(file)))
    if file.name == "merges.txt":
        return check_tokenizer(_clip(file.with_name("vocab.json"), file))
    if file.suffix == ".txt":
        return check_tokenizer(_bert(_decoded(file)))
    if file.name == "vocab.json":
        return check_tokenizer(_clip(file, file.with_name("merges.txt")))
    if file.suffix == ".json":
        return read_tokenizer(_bytes(file))
    raise TokenizerError(f"a file *{file.suffix} is no tokenizer that is taken; give {TAKEN}")


def _bert(text: str) -> Json:
    """BERT's, uncased (arXiv 1810.04805): one piece in each line, whose number is its id."""
    pieces = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    ids = {piece: number for number, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        twice = next(number for number, piece in enumerate(pieces) if ids[piece] != number)
        raise TokenizerError(f"line {twice + 1}: {pieces[twice]!r} comes again in line {ids[pieces[twice]] + 1}")
    _need(ids, ("[UNK]", "[CLS]", "[SEP]"), "BERT's vocab.txt")
    return {
        "added_tokens": _added({piece: ids[piece] for piece in BERT_SPECIAL if piece in ids}),
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


def _clip(vocabulary: Path, merges: Path) -> Json:
    """CLIP's (arXiv 2103.00020): pairs of bytes, merged; words end in </w>."""
    try:
        ids = json.loads(_decoded(vocabulary))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{vocabulary}: no JSON ({error})") from error
    if not isinstance(ids, dict):
        raise TokenizerError(f"{vocabulary}: an object {{piece: id}} is needed")
    _need(ids, (CLIP_START, CLIP_END), "CLIP's vocab.json")
    lines = [line.rstrip("\r") for line in _decoded(merges).split("\n")]
    return {
        "added_tokens": _added({CLIP_START: ids[CLIP_START], CLIP_END: ids[CLIP_END]}),
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


def _sentencepiece(data: bytes) -> Json:
    """XLM-R's or SigLIP's, which are told by their first pieces."""
    model = read_model(data)
    own = tuple(piece for piece, _, _ in model.pieces[:3])
    if own == SIGLIP_SPECIAL:
        return _siglip(model)
    if own != ("<unk>", "<s>", "</s>"):
        raise ModelFileError(
            f"its first pieces are {list(own)}, neither <unk>, <s> and </s> as in XLM-R's model, nor <pad>, </s> and <unk> as in SigLIP's"
        )
    return _xlmr(model)


def _siglip(model: SentencePieceModel) -> Json:
    """SigLIP's (arXiv 2303.15343): small letters without punctuation, SentencePiece's pieces, and </s> behind them."""
    end = SIGLIP_SPECIAL.index("</s>")
    return {
        "added_tokens": _added({piece: number for number, piece in enumerate(SIGLIP_SPECIAL)}),
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


def in_small_letters(file: TokenizerFile) -> TokenizerFile:
    """The same tokenizer, of texts without capitals."""
    if file.cleans:
        return file
    normalizers = [{"type": "Lowercase"}, *([] if file.normalizer is None else [file.normalizer])]
    return check_tokenizer({**file.content, "normalizer": {"type": "Sequence", "normalizers": normalizers}})


def _xlmr(model: SentencePieceModel) -> Json:
    """XLM-R's (arXiv 1911.02116): SentencePiece's pieces from the fourth on, one id higher, and <mask> as the last."""
    pieces = [[piece, score] for piece, score, _ in model.pieces[3:]]
    mask = len(XLMR_SPECIAL) + len(pieces)
    ids = {piece: number for number, piece in enumerate(XLMR_SPECIAL)} | {XLMR_MASK: mask}
    return {
        "added_tokens": _added(ids),
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


def _without_special(file: TokenizerFile) -> TokenizerFile:
    return check_tokenizer(
        {**file.content, "post_processor": None, "added_tokens": [token for token in file.added_tokens if not token.get("special")]}
    )


def _added(ids: Mapping[str, int]) -> list[Json]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": number, "content": piece, **flags, "special": True} for piece, number in sorted(ids.items(), key=lambda item: item[1])]


def _frame(first: str, first_id: int, last: str, last_id: int) -> Json:
    """The special tokens around a text."""
    sides = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (first, last)]
    tokens = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in ((first, first_id), (last, last_id))}
    sequences = [{"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1))]
    single = [sides[0], sequences[0], sides[1]]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, sequences[1], sides[1]], "special_tokens": tokens}


def _need(ids: Mapping[str, Any], pieces: Sequence[str], kind: str) -> None:
    missing = [piece for piece in pieces if piece not in ids]
    if missing:
        raise TokenizerError(f"{', '.join(missing)} is missing; {kind} has it")


def _bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read ({error.strerror})") from error
    if len(data) > MOST_BYTES:
        raise TokenizerError(f"{file}: more than {MOST_BYTES:,} bytes")
    return data


def _decoded(file: Path) -> str:
    try:
        return _bytes(file).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file}: no text in UTF-8 ({error.reason} at byte {error.start})") from error
