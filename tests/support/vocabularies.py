"""Strings in many scripts, always the same, and small vocabularies trained on them."""

from __future__ import annotations

import io
import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

SCRIPTS = {
    "Latin": (0x41, 0x7A),
    "Latin, accented": (0xC0, 0x17F),
    "Vietnamese": (0x1EA0, 0x1EF9),
    "Greek": (0x370, 0x3FF),
    "polytonic Greek": (0x1F00, 0x1FFE),
    "Cyrillic": (0x400, 0x4FF),
    "Armenian": (0x531, 0x587),
    "Hebrew": (0x591, 0x5F4),
    "Arabic": (0x620, 0x6FF),
    "Arabic, presentation forms": (0xFE70, 0xFEFC),
    "Syriac": (0x710, 0x74A),
    "Devanagari": (0x900, 0x97F),
    "Bengali": (0x980, 0x9FB),
    "Gurmukhi": (0xA01, 0xA75),
    "Gujarati": (0xA81, 0xAF1),
    "Tamil": (0xB82, 0xBFA),
    "Telugu": (0xC01, 0xC7F),
    "Kannada": (0xC82, 0xCF2),
    "Malayalam": (0xD02, 0xD7F),
    "Sinhala": (0xD82, 0xDF4),
    "Thai": (0xE01, 0xE5B),
    "Lao": (0xE81, 0xEDF),
    "Tibetan": (0xF00, 0xFD4),
    "Burmese": (0x1000, 0x109F),
    "Georgian": (0x10A0, 0x10FF),
    "Hangul jamo": (0x1100, 0x11FF),
    "Ethiopic": (0x1200, 0x137C),
    "Khmer": (0x1780, 0x17F9),
    "Mongolian": (0x1800, 0x18AA),
    "Hiragana and Katakana": (0x3041, 0x30FF),
    "Han": (0x4E00, 0x4EFF),
    "Hangul": (0xAC00, 0xACFF),
    "full-width and half-width": (0xFF01, 0xFFEE),
    "Latin ligatures": (0xFB00, 0xFB06),
    "mathematical letters": (0x1D400, 0x1D4FF),
    "emoji": (0x1F600, 0x1F64F),
}
"""First and last code point that strings of a script are drawn from."""

HARD = (
    *("e\u0301", "a\u0328\u0301", "\u0301", "q\u0307\u0323", "ﬁ", "ﬃ", "ß", "İ", "ı", "ǆ", "㎏", "①", "½", "ﷺ", "Å", "\u00a8", "\u0345"),
    *("👩\u200d🚀", "👨\u200d👩\u200d👧", "👍🏽", "🇩🇪", "☺\ufe0f", "ᄀ", "ᅡ", "ᆨ", "각", "\u1112\u1161\u11ab", "ﾊ\uff9f", "Ａ", "ｶﾞ"),
    *("\x00", "\x01", "\x7f", "\x85", "\u200b", "\u200e", "\ufeff", "\ufffd", "\u00ad", "\u2060", "\ue000", "\U000e0041", "\U0010ffff"),
    *(" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u1680", "\u2003", "\u2028", "\u202f", "\u205f", "\u3000", "▁", "▁▁"),
    *(
        "a",
        "aaaaaaaa",
        "haha",
        "!!",
        "...",
        "don't",
        "it's",
        "we'LL",
        "1234",
        "3.14",
        "a_b",
        "x" * 101,
        "##ing",
        "<s>",
        "</s>",
        "<pad>",
        "<mask>",
    ),
    *("[CLS]", "[MASK]", "[sep]", "<unk>", "<|endoftext|>", "<|startoftext|>", "</w>", "$€¥", "«»", "、。", "中文字", "-", "—", "@#%"),
)
"""Combining marks, ligatures, sequences of emoji, jamo, controls, spaces of all kinds, repetitions, special tokens written as text."""


def strings(count: int, seed: int = 1) -> list[str]:
    """Words, noise, hard cases and repetitions, over all scripts; among them empty strings. Only assigned code points."""
    draw = random.Random(seed)
    letters = {name: [chr(code) for code in range(first, last + 1) if assigned(code)] for name, (first, last) in SCRIPTS.items()}
    words = {name: ["".join(draw.choices(found, k=draw.randint(1, 7))) for _ in range(80)] for name, found in letters.items()}
    makers = (
        lambda name: " ".join(draw.choices(words[name], k=draw.randint(0, 12))),
        lambda name: "".join(draw.choices(letters[name], k=draw.randint(1, 50))),
        lambda name: "".join(draw.choice((draw.choice(HARD), draw.choice(words[name]))) for _ in range(draw.randint(1, 12))),
        lambda name: draw.choice((*HARD, *words[name])) * draw.randint(1, 40),
        lambda name: " ".join(draw.choice(words[draw.choice(list(words))]) for _ in range(draw.randint(1, 40))),
    )
    names = list(SCRIPTS)
    return [draw.choice(makers)(names[number % len(names)]) for number in range(count)]


def assigned(code: int) -> bool:
    return unicodedata.category(chr(code)) != "Cn"


BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLIP_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def sentences(count: int = 3000) -> list[str]:
    plain = [
        "a photo of a red car",
        "the dog sleeps on the sofa",
        "a a aaaa aaaaaaaa",
        "ha haha hahahaha !!! !!!!!!",
        "don't stop it's 2024",
    ]
    return [*plain * 40, *(text for text in strings(count, seed=7) if text.strip() and max(map(len, text.split())) < 90)]


def bert(folder: Path, size: int = 4000) -> Path:
    """`vocab.txt` with the special tokens first."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(
        sentences(), trainers.WordPieceTrainer(vocab_size=size, special_tokens=BERT_SPECIAL, show_progress=False, limit_alphabet=900)
    )
    ids = trained.get_vocab()
    file = folder / "vocab.txt"
    file.write_text("".join(f"{piece}\n" for piece in sorted(ids, key=lambda piece: ids[piece])), encoding="utf-8")
    return file


def clip(folder: Path, size: int = 3000) -> Path:
    """`vocab.json` and `merges.txt`: CLIP's 256 bytes, the same at the ends of words, merges, and the two special tokens last."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        sentences(),
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in json.loads(trained.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *dict.fromkeys(merge.replace(" ", "") for merge in merges)]
    ids = {piece: number for number, piece in enumerate([*dict.fromkeys(pieces), *CLIP_SPECIAL])}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges), encoding="utf-8")
    return folder


def small_bert(folder: Path, size: int) -> Path:
    """`vocab.txt` of letters, at the start of words and within, and a few words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*BERT_SPECIAL, *letters, *(f"##{letter}" for letter in letters), "photo", "of", "red", "dog", "cat", ".", "!"]
    pieces += [f"[unused{number}]" for number in range(size)]
    file = folder / "vocab.txt"
    file.write_text("".join(f"{piece}\n" for piece in pieces[:size]), encoding="utf-8")
    return file


def siglip(folder: Path, size: int = 6000, texts: Sequence[str] | None = None) -> Path:
    """`spiece.model` with SigLIP's order of special pieces."""
    made = sentencepiece_model(folder, size, texts, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return made.rename(folder / "spiece.model")


def sentencepiece_model(folder: Path, size: int = 6000, texts: Sequence[str] | None = None, **special: int) -> Path:
    """Write a unigram model with XLM-R's normalisation, nmt_nfkc, and its order of special pieces, unless `special` says another."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences() if texts is None else texts),
        model_writer=written,
        vocab_size=size,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        character_coverage=0.995,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **special,
    )
    file = folder / "sentencepiece.bpe.model"
    file.write_bytes(written.getvalue())
    return file
