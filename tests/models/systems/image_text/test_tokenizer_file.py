"""A `tokenizer.json` of a stranger, and tokenizers in the other forms that were published."""

from __future__ import annotations

import base64
import copy
import json
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.systems.image_text.sentencepiece import (
    MAX_KEY_BYTES,
    CharacterMapError,
    ModelFileError,
    read_character_map,
    read_model,
)
from models.systems.image_text.tokenizer import CutFn, Tokenizer
from models.systems.image_text.tokenizer_conversion import read_templates, read_vocabulary
from models.systems.image_text.tokenizer_file import MAX_ADDED_TOKENS, MAX_FILE_BYTES, TokenizerFile, read_tokenizer
from models.systems.image_text.tokenizer_vocabulary import MAX_PIECES, TokenizerError
from tests.support import vocabularies

Change = Callable[[dict[str, Any]], object]

WORDS = {"[UNK]": 0, "a": 1, "dog": 2, "[CLS]": 3, "[SEP]": 4}
PLAIN: dict[str, Any] = {
    "version": "1.0",
    "truncation": {"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
    "padding": None,
    "added_tokens": [
        {"id": 3, "content": "[CLS]", "special": True, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    ],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": WORDS,
    },
}


def change_bytes(change: Change) -> bytes:
    content = copy.deepcopy(PLAIN)
    change(content)
    return json.dumps(content).encode()


def put(path: str, value: Any) -> Change:
    """Set the entry at a dotted path."""

    def change(content: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for name in outer:
            content = content[name]
        content[last] = value

    return change


def open_tokenizer(file: TokenizerFile) -> CutFn:
    return Tokenizer.from_file(file, length=10_000, is_fixed_length=False, padding=0).cut


def ids(data: bytes, texts: Sequence[str]) -> list[list[int]]:
    return open_tokenizer(read_tokenizer(data))(texts, 10_000)


def test_what_is_taken_is_read_as_the_library_reads_it() -> None:
    file = read_tokenizer(json.dumps(PLAIN).encode())
    assert (file.prefix_ids, file.suffix_ids, file.vocabulary) == ((3,), (4,), 5)
    assert ids(json.dumps(PLAIN).encode(), ["A dog  a", "cat", ""]) == [[1, 2, 1], [0], []]  # its truncation is left out
    assert read_tokenizer(file.to_bytes()).to_bytes() == file.to_bytes()


@pytest.mark.parametrize(
    ("processor", "before", "after"),
    [
        (None, (), ()),
        ({"type": "RobertaProcessing", "sep": ["b", 2], "cls": ["a", 1], "trim_offsets": True, "add_prefix_space": False}, (1,), (2,)),
        ({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, (), ()),
        (
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "x", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "y", "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {"x": {"id": "x", "ids": [3, 1], "tokens": ["x"]}, "y": {"id": "y", "ids": [4], "tokens": ["y"]}},
            },
            (3, 1),
            (4,),
        ),
    ],
)
def test_special_tokens_come_from_the_post_processor(processor: Any, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    file = read_tokenizer(change_bytes(put("post_processor", processor)))
    assert (file.prefix_ids, file.suffix_ids) == (before, after)


NESTED: dict[str, Any] = {"type": "NFC"}
for _ in range(5):
    NESTED = {"type": "Sequence", "normalizers": [NESTED]}

DEEP: Any = []
for _ in range(40):
    DEEP = [DEEP]


def replace(pattern: Any, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("model", []), "model: an object is needed"),
        (put("model.type", "Neural"), "model.type: 'Neural' is not accepted; accepted are WordPiece, BPE"),
        (put("model.vocab", {}), r"model.vocab: an object \{piece: id\} is needed"),
        (put("model.vocab", {"[UNK]": 0, "a": 0}), "model.vocab: two pieces have the same id"),
        (put("model.vocab", {"[UNK]": 0, "a": MAX_PIECES}), "model.vocab: 'a': id 1048576 must be an integer from 0 to 1048575"),
        (put("model.vocab", {"[UNK]": 0, "a": -1}), "model.vocab: 'a': id -1 must be"),
        (put("model.vocab", {"[UNK]": 0, "a": True}), "model.vocab: 'a': id True must be"),
        (put("model.vocab", {"[UNK]": 0, "a" * 513: 1}), "model.vocab: 'a+'… has 513 bytes, more than 512"),
        (put("model.vocab", {"[UNK]": 0, "\ud800": 1}), "model.vocab: .* has a lone surrogate"),
        (put("model.unk_token", "[NONE]"), r"model.unk_token: '\[NONE\]' is not in model.vocab"),
        (put("model.max_input_chars_per_word", 10**9), "model.max_input_chars_per_word: 1000000000 must be an integer from 1 to 256"),
        (put("model.extra", DEEP), "model.extra: objects and lists are more than 12 deep"),
        (put("normalizer", {"type": "Regex"}), "normalizer.type: 'Regex' is not accepted; accepted are BertNormalizer, NFC"),
        (put("normalizer", "NFC"), "normalizer.type: 'NFC' is not accepted"),
        (put("normalizer", NESTED), "normalizer.*: a list of at most 8, at most 3 deep, is needed"),
        (put("normalizer.normalizers", [{"type": "NFC"}] * 9), "normalizer.normalizers: a list of at most 8"),
        (put("normalizer.normalizers", [{"type": "NFC"}, {"type": "X"}]), "normalizer.normalizers.1.type: 'X' is not accepted"),
        (put("normalizer", replace({"Regex": "(a+)+$"}, "")), r"normalizer.pattern: '\(a\+\)\+\$' is not accepted"),
        (put("normalizer", replace({"String": "a"}, "a" * 17)), "normalizer: replacements may lengthen a text 17 times; at most 16"),
        (
            put("normalizer", {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aaaaa")] * 2}),
            "normalizer.normalizers.1: replacements may lengthen a text 25 times",
        ),
        (put("normalizer", replace({"String": ""}, "a")), "normalizer.pattern: '' must be a text that is not empty"),
        (put("normalizer", {"type": "Prepend", "prepend": "a" * 600}), "normalizer.prepend: .* has 600 bytes, more than 512"),
        (put("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "Precompiled is accepted with model Unigram"),
        (put("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(x*)*y"}}), r"pre_tokenizer.pattern: '\(x\*\)\*y' is not accepted"),
        (put("pre_tokenizer", {"type": "Split", "pattern": "x"}), "pre_tokenizer.pattern: an object with String or Regex is needed"),
        (put("pre_tokenizer", {"type": "UnicodeScripts"}), "pre_tokenizer.type: 'UnicodeScripts' is not accepted"),
        (put("post_processor", {"type": "Script"}), "post_processor.type: 'Script' is not accepted"),
        (put("post_processor.cls", ["[CLS]", -3]), "post_processor.cls: id -3 must be an integer"),
        (put("post_processor.cls", None), r"post_processor.cls: \[token, id\] is needed"),
        (
            put("post_processor", {"type": "TemplateProcessing", "single": [], "special_tokens": {}}),
            "exactly one Sequence is needed, found 0",
        ),
        (put("added_tokens", [PLAIN["added_tokens"][0]] * (MAX_ADDED_TOKENS + 1)), "added_tokens: 4,097 tokens are more than 4,096"),
        (put("added_tokens", [{"id": 1, "content": ""}]), r"added_tokens.0.content: ''"),
        (put("added_tokens", [{"id": 2**40, "content": "x"}]), "added_tokens.0.id: id 1099511627776 must be"),
    ],
)
def test_unknown_entries_are_refused_by_name(change: Change, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        read_tokenizer(change_bytes(change))


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({**BPE, "dropout": 0.1}, "model.dropout: 0.1 would cut a text in another way each time"),
        ({**BPE, "merges": {}}, "model.merges: a list is needed"),
        ({**BPE, "merges": [["a", "b" * 2000]]}, "model.merges.0: .* has 2000 bytes"),
        ({**BPE, "merges": ["a c"]}, "the library tokenizers does not accept it"),
        ({**UNIGRAM, "unk_id": 2}, "model.unk_id: 2 is not the index of a piece"),
        ({**UNIGRAM, "unk_id": None}, "model.unk_id: None is not the index of a piece"),
        ({**UNIGRAM, "vocab": [["a", 0.0], ["a", 1.0]]}, "model.vocab: two pieces are the same"),
        ({**UNIGRAM, "vocab": [["a", "b"]]}, r"model.vocab.0: \[piece, score\] is needed"),
        ({**UNIGRAM, "vocab": [["a", 1e300]]}, r"model.vocab.0: score 1e\+300 is beyond what float32 can sum"),
        ({**UNIGRAM, "vocab": {"a": 0}}, r"model.vocab: a list of \[piece, score\] is needed"),
    ],
)
def test_models_are_bounded(model: dict[str, Any], sentence: str) -> None:
    content = {**PLAIN, "model": model, "added_tokens": [], "post_processor": None}
    with pytest.raises(TokenizerError, match=sentence):
        open_tokenizer(read_tokenizer(json.dumps(content).encode()))


SEQUENCES: dict[str, Any] = {
    **PLAIN,
    "normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "b"), {"type": "Strip", "strip_left": True}]},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Removed", "invert": False}],
    },
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"x": {"id": "x", "ids": [3], "tokens": ["x"]}},
    },
}


def paths(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [*([at] if at else []), *(path for name, value in inner for path in paths(value, (*at, name)))]


@pytest.mark.parametrize(
    "content", [PLAIN, SEQUENCES, {**SEQUENCES, "model": BPE}, {**PLAIN, "model": UNIGRAM}], ids=["plain", "sequences", "BPE", "Unigram"]
)
def test_an_entry_of_another_type_is_refused_or_does_no_harm(content: dict[str, Any]) -> None:
    """The entries take each of these values in turn."""
    refused = 0
    for path in paths(content):
        for value in (None, True, -1, 2.5, 10**30, "", "x", [], [[]], [None], {}, {"type": "Sequence"}, {"a": []}):
            other = copy.deepcopy(content)
            place = other
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = value
            try:
                open_tokenizer(read_tokenizer(json.dumps(other).encode()))(["a dog  b", ""], 10)
            except TokenizerError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not JSON of the library tokenizers"),
        (b"\xff\xfe", "not JSON of the library tokenizers"),
        (b"[" * 100_000, "not JSON of the library tokenizers"),
        (b'{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", NaN]]}}', "NaN is not a number"),
        (b"[]", "model: an object is needed"),
        (b" " * (MAX_FILE_BYTES + 1), "67,108,865 bytes are more than 67,108,864"),
    ],
)
def test_bytes_that_are_no_tokenizer_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        read_tokenizer(data)


@pytest.mark.timeout(60)
def test_adversarial_texts_are_tokenized_as_fast_as_others(tmp_path: Path) -> None:
    """CPU seconds of the longest texts that clients may send, in each kind: spaces, letters without an end, marks without a base."""
    kinds = {
        "bert": vocabularies.bert(tmp_path),
        "clip": vocabularies.clip(tmp_path),
        "xlmr": vocabularies.sentencepiece_model(tmp_path),
    }
    texts = [
        unit * (2048 // len(unit))
        for unit in (" ", "a", "aA", "\u0301", "e\u0301", "👨\u200d👩\u200d👧", "中", " a", "!", "ﷺ", "\t\n", "q\u0323\u0307")
    ]
    for kind, source in kinds.items():
        if kind == "clip":
            source = tmp_path / "vocab.json"
        cut = open_tokenizer(read_vocabulary(source))
        started_at = time.process_time()
        cut(texts, 100)
        assert time.process_time() - started_at < 2, kind


def test_bert_files_may_have_windows_line_ends_and_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_bytes("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n\u2028\r\ndog\r\n".encode())
    assert dict(read_vocabulary(file).model["vocab"]) == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "\u2028": 4, "dog": 5}
    file.write_text("[UNK]\n[CLS]\n[SEP]\ndog\ndog\n")
    with pytest.raises(TokenizerError, match=r"vocab\.txt: line 4: 'dog' is also in line 5"):
        read_vocabulary(file)
    file.write_text("a\nb\n")
    with pytest.raises(TokenizerError, match=r"vocab\.txt: \[UNK\], \[CLS\], \[SEP\] is missing; BERT's vocab\.txt has it"):
        read_vocabulary(file)


def test_a_folder_or_either_file_of_clip_is_the_same(tmp_path: Path) -> None:
    folder = vocabularies.clip(tmp_path)
    full, *others = (read_vocabulary(path).to_bytes() for path in (folder, folder / "vocab.json", folder / "merges.txt"))
    assert others == [full, full]
    (folder / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"merges\.txt: cannot be read \(No such file or directory\)"):
        read_vocabulary(folder)


@pytest.mark.parametrize("name", ["xlmr.vocab.pt", "vocab.npy", "vocab.pkl", "tokenizer.bin"])
def test_pickles_are_refused_with_what_to_give_instead(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(TokenizerError, match=r"pickled files are never opened.*give a tokenizer\.json, BERT's vocab\.txt, CLIP's"):
        read_vocabulary(tmp_path / name)
    with pytest.raises(TokenizerError, match=r"pickled files are never opened.*give a text file in UTF-8 with one template in each line"):
        read_templates(tmp_path / name)


def test_other_files_are_refused_with_what_is_taken(tmp_path: Path) -> None:
    for name, sentence in (
        ("words.csv", r"a file \*\.csv is not an accepted tokenizer; give a tokenizer\.json"),
        (".", "contains no tokenizer; give"),
    ):
        if name != ".":
            (tmp_path / name).write_text("a,b")
        with pytest.raises(TokenizerError, match=sentence):
            read_vocabulary(tmp_path / name)
    with pytest.raises(TokenizerError, match=r"none\.json: cannot be read \(No such file or directory\)"):
        read_vocabulary(tmp_path / "none.json")


def test_templates_are_lines_or_a_list_or_those_of_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("a photo of {}.\n\n  ein Foto von {}.\r\n", encoding="utf-8")
    (tmp_path / "templates.json").write_text('["a photo of {}.", "ein Foto von {}."]')
    (tmp_path / "bundle.json").write_text('{"text": {"templates": ["a photo of {}.", "ein Foto von {}."]}}')
    found = [read_templates(tmp_path / name) for name in ("templates.txt", "templates.json", "bundle.json")]
    assert found == [["a photo of {}.", "ein Foto von {}."]] * 3
    (tmp_path / "latin.txt").write_bytes("größer {}".encode("latin-1"))
    with pytest.raises(TokenizerError, match=r"latin\.txt: not text in UTF-8 \(invalid start byte at byte 2\)"):
        read_templates(tmp_path / "latin.txt")
    (tmp_path / "number.json").write_text("3")
    with pytest.raises(TokenizerError, match=r"a JSON list of templates, or a bundle\.json with some, is needed"):
        read_templates(tmp_path / "number.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return vocabularies.sentencepiece_model(tmp_path_factory.mktemp("model")).read_bytes()


def test_sentencepiece_files_that_are_cut_short_are_refused(model: bytes) -> None:
    assert len(read_model(model).pieces) > 1000
    for length in (*range(0, 200, 7), *range(len(model) - 300, len(model), 7)):
        try:
            read_model(model[:length])
        except ModelFileError:
            continue
        pytest.fail(f"the first {length} bytes were taken")


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (b"\x12\x02\x18\x02", "trainer_spec.model_type is 2; only unigram is taken"),
        (b"\x12\x03\x98\x02\x01", "trainer_spec.byte_fallback is 1; only false is taken"),
        (b"\x12\x03\xc0\x01\x01", "trainer_spec.treat_whitespace_as_suffix is 1"),
        (b"\x1a\x02\x18\x00", "normalizer_spec.add_dummy_prefix is 0; only true is taken"),
        (b"\x1a\x02\x20\x00", "normalizer_spec.remove_extra_whitespaces is 0"),
        (b"\x1a\x02\x12\x00", "normalizer_spec.precompiled_charsmap is missing"),
        (b"\x0a\x07\x0a\x03abc\x18\x06", "piece b?'abc' is of type 6"),
        (b"\x0b", "no field of a SentencePiece model starts here"),
        (b"\xff" * 12, "a number of more than ten bytes"),
    ],
)
def test_sentencepiece_models_that_cut_in_other_ways_are_refused(model: bytes, field: bytes, sentence: str) -> None:
    """Fields that come again at the end of a message count, as Protocol Buffers say."""
    with pytest.raises(ModelFileError, match=sentence):
        read_model(model + field)


def character_map(units: Sequence[int], texts: bytes = b"x\0") -> bytes:
    return struct.pack("<I", 4 * len(units)) + np.array(units, "<u4").tobytes() + texts


def chain(length: int) -> list[int]:
    """Build a trie of one key "aaa…": nodes that each lie at 'a' (0x61) behind an offset."""
    units = [0] * (256 * (length + 3))
    at = 0
    for step in range(length):
        base = 256 * (step + 1)
        units[at] |= (base ^ at) << 10
        at = base ^ 0x61
        units[at] |= 0x61
    base = 256 * (length + 1)
    units[at] |= (base ^ at) << 10 | 1 << 8
    units[base] = 1 << 31
    return units


def test_a_character_map_is_read_key_by_key() -> None:
    found = read_character_map(character_map(chain(3), b"b\0"))
    assert found.normalise("aaaa aa aaaaaa") == "▁ba▁aa▁bb"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "0 bytes are too few"),
        (struct.pack("<I", 400) + b"\0" * 8, "a trie of 400 bytes does not fit into 12"),
        (struct.pack("<I", 6) + b"\0" * 8, "a trie of 6 bytes does not fit into 12"),
        (character_map([0xFFFFFC00, 0]), "a node of its trie points beyond its end"),
        (character_map(chain(3), b"b"), f"no text of at most {MAX_KEY_BYTES} bytes starts at byte 0"),
        (character_map(chain(3), b"b" * 999 + b"\0"), f"no text of at most {MAX_KEY_BYTES} bytes starts at byte 0"),
        (character_map(chain(3), b"\xff\0"), "is not UTF-8"),
        (character_map(chain(MAX_KEY_BYTES + 1)), f"a key of more than {MAX_KEY_BYTES} bytes"),
        # every node has all the others and itself as children: a trie without an end
        (character_map([unit | unit << 10 for unit in range(256)]), "its trie has more than 1,048,576 nodes"),
    ],
)
def test_a_hostile_character_map_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(CharacterMapError, match=sentence):
        read_character_map(data)


def test_the_characters_of_a_map_are_named_in_the_entry(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(model)
    content = read_vocabulary(tmp_path / "spm.model").to_library_json()
    content["normalizer"]["precompiled_charsmap"] = base64.b64encode(b"\1\0\0\0abc").decode()
    with pytest.raises(TokenizerError, match=r"normalizer\.precompiled_charsmap: a trie of 1 bytes does not fit into 7"):
        open_tokenizer(read_tokenizer(json.dumps(content).encode()))
    content["normalizer"]["precompiled_charsmap"] = "?"
    with pytest.raises(TokenizerError, match=r"normalizer\.precompiled_charsmap: not base64"):
        read_tokenizer(json.dumps(content).encode())


def test_xlmr_tokenizer_json_equals_its_sentencepiece_model(model: bytes, tmp_path: Path) -> None:
    """The file is as hubs have it next to XLM-R: spaces in two steps, and special tokens that the library would find in texts."""
    (tmp_path / "spm.model").write_bytes(model)
    ours = read_vocabulary(tmp_path / "spm.model")
    content = copy.deepcopy(ours.to_library_json())
    collapse = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    content["normalizer"] = {"type": "Sequence", "normalizers": [content["normalizer"], collapse]}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}],
    }
    texts = ["a red  car", "<s> a </s>", "aaaaaaaaaaaaa", "ﬁ e\u0301 ｶﾞ"]
    assert ids(json.dumps(content).encode(), texts) == open_tokenizer(ours)(texts, 10_000)
    for entry, value, sentence in (
        ("normalizer.normalizers", [collapse, content["normalizer"]["normalizers"][0]], "Precompiled is accepted as the first"),
        ("pre_tokenizer", {"type": "Whitespace"}, "Precompiled is accepted with model Unigram and pre_tokenizer Metaspace"),
        ("pre_tokenizer.pretokenizers", [{"type": "Metaspace", "replacement": "_"}], "Metaspace must have replacement '▁'"),
        ("model.byte_fallback", True, "model.byte_fallback: true is not accepted with a character map"),
        ("added_tokens", [{"id": 9, "content": "new"}], "added_tokens: 'new' is not special"),
    ):
        other = copy.deepcopy(content)
        put(entry, value)(other)
        with pytest.raises(TokenizerError, match=sentence):
            read_tokenizer(json.dumps(other).encode())
