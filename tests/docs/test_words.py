"""Each rule of docs/words.py reports a fault and lets good code and prose pass."""

from __future__ import annotations

from importlib import import_module
from pathlib import PurePosixPath
from types import ModuleType

import pytest

from tests.docs.code_blocks import ROOT

MODULE = '"""A module."""\n'

FAULTS_IN_PYTHON = {
    "name-word": ("def read(told_of: int) -> None: ...", "def read(reply_of: int) -> None: ..."),
    "name-pronoun": ("def read(most: int) -> None: ...", "def read(max_count: int) -> None: ..."),
    "name-superlative": ("MOST_BYTES = 1", "MAX_BYTES = 1"),
    "function-preposition": ("def of_error() -> None: ...", "def error_to_problem() -> None: ..."),
    "function-participle": ("def decoded() -> None: ...", "def decode() -> None: ..."),
    "class-participle": ("class Drawn: ...", "class Embedding: ..."),
    "docstring-opening": ('"""For OpenAPI."""', '"""Return the operation for OpenAPI."""'),
    "docstring-mood": ('def has_it() -> bool:\n    """Whether it has it."""', 'def has_it() -> bool:\n    """Return whether it has it."""'),
    "docstring-shape-first": ('def mean(x):\n    """(B, N) → (B,)."""', 'def mean(x):\n    """Average: (B, N) → (B,)."""'),
    "docstring-raises-first": ('def parse():\n    """Raises UsageError."""', 'def parse():\n    """Parse. Raises UsageError."""'),
    "docstring-parameter-first": ('def cut(size):\n    """size: in pixels."""', 'def cut(size):\n    """Cut. size: in pixels."""'),
    "docstring-ellipsis": ('A = 1\n"""Cut after ..."""', 'A = 1\n"""Cut after `...`."""'),
    "docstring-where": ('A = 1\n"""None where unknown."""', 'A = 1\n"""None if unknown."""'),
    "docstring-long": (f'A = 1\n"""Words{" and words" * 13}."""', f'A = 1\n"""Words.{" And words." * 13}"""'),
    "docstring-class": ('class Pool:\n    """Holds connections."""', 'class Pool:\n    """Options of connections."""'),
    "docstring-unit": ('WAIT = 1\n"""Seconds."""', 'WAIT = 1\n"""Timeout in seconds."""\nWAIT_S = 1\n"""Seconds."""'),
    "docstring-array": ('def mean(x) -> Tensor:\n    """Average."""', 'def mean(x) -> Tensor:\n    """Average: (B, N) → (B,)."""'),
    "docstring-word": ('"""A job that nobody wants."""', '"""A job that no one wants, `nobody`."""'),
    "comment-word": ("A = 1  # made anew", "A = 1  # made again"),
    "message-word": ('raise ValueError(f"{a} is no folder")', 'raise ValueError(f"{a} is not a folder; there is no folder")'),
    "log-word": ('log.info("queue away")', 'log.info("queue unavailable")'),
    "file-length": ("A = 1\n" * 401, "A = 1\n" * 300),
    "glossary": ("class Film: ...", "class Clip: ..."),
}


@pytest.fixture(scope="module")
def words() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return import_module("words")


def rules_broken_by(words: ModuleType, path: str, text: str) -> set[str]:
    source = words.PythonFile(PurePosixPath(path), text)
    return {hit.rule for hit in words.hits_of(source)}


@pytest.mark.parametrize("rule", FAULTS_IN_PYTHON)
def test_fault_is_reported(words: ModuleType, rule: str) -> None:
    fault, _ = FAULTS_IN_PYTHON[rule]
    assert rule in rules_broken_by(words, "models/part.py", fault)


@pytest.mark.parametrize("rule", FAULTS_IN_PYTHON)
def test_good_code_breaks_no_rule(words: ModuleType, rule: str) -> None:
    _, good = FAULTS_IN_PYTHON[rule]
    assert rules_broken_by(words, "models/part.py", good) == set()


def test_module_named_by_participle(words: ModuleType) -> None:
    assert rules_broken_by(words, "models/looking.py", MODULE) == {"module-participle"}
    assert rules_broken_by(words, "models/merging.py", MODULE) == set()


@pytest.mark.parametrize("name", ["test_line_7_jobs_are_dropped", f"test_{'long_' * 12}name"])
def test_names_of_tests(words: ModuleType, name: str) -> None:
    assert rules_broken_by(words, "tests/test_a.py", f"def {name}() -> None: ...") == {"test-name"}
    assert rules_broken_by(words, "tests/test_a.py", "def test_pull_drops_jobs() -> None: ...") == set()


def test_class_name_of_two_files(words: ModuleType) -> None:
    paths = ("models/a.py", "server/b.py", "opsin/c.py", "tests/d.py")
    a, b, client, test = (words.PythonFile(PurePosixPath(path), "class Box: ...") for path in paths)
    assert {source.path for source, _, _ in words.names.repeated_classes([a, b, test])} == {a.path, b.path}
    assert list(words.names.repeated_classes([a, client, test])) == []


def test_array_alias_of_two_files(words: ModuleType) -> None:
    a, b, c = (words.PythonFile(PurePosixPath(f"models/{name}.py"), "Floats = NDArray[np.float32]") for name in "abc")
    other = words.PythonFile(PurePosixPath("models/d.py"), "from models.a import Floats\nPoints = NDArray[np.float32]")
    assert len(list(words.names.repeated_aliases([a, b, c, other]))) == 3
    assert list(words.names.repeated_aliases([a, other])) == []


def test_markdown_is_read_outside_of_code(words: ModuleType) -> None:
    text = "One is told.\n\n```\ntold\n```\n\n`told`, [a](told.md), told apart\n"
    assert [line for line, _ in words.prose.markdown_words(text)] == [1]


@pytest.mark.parametrize(
    "text",
    [
        "It tells nobody.",
        "as far as\nit goes",
        "the begin of it",
        "Redis is away",
        "x in place of y",
        "It is no folder.",
        "a class of ours",
    ],
)
def test_words_that_go(words: ModuleType, text: str) -> None:
    assert list(words.prose.hits(1, text))


@pytest.mark.parametrize(
    "text",
    ["Both are told apart.", "Turned away right away.", "There is no folder.", "It is no longer there.", "`told`", "written in place"],
)
def test_words_that_stay(words: ModuleType, text: str) -> None:
    assert not list(words.prose.hits(1, text))


def test_fields_of_formats_may_keep_their_names(words: ModuleType) -> None:
    for path, fields in words.names.FORMAT_FIELDS.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert {name for _, name in words.PythonFile(PurePosixPath(path), text).names} >= set(fields)
        assert rules_broken_by(words, path, "".join(f"{field} = 1\n" for field in fields)) == set()
        assert rules_broken_by(words, "models/part.py", f"{fields[0]} = 1\n")


def test_every_rule_has_a_fault_above(words: ModuleType) -> None:
    assert all(rule in FAULTS_IN_PYTHON for rule in words.RULES.keys() - {"module-participle", "test-name"})
