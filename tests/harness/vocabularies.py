"""Small vocabularies of the three kinds that pairs have, trained on the strings that tests ask for."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.models.systems.image_text.strings import strings

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
    """A unigram model with XLM-R's normalisation, nmt_nfkc, and its order of special pieces, unless `special` says another."""
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
