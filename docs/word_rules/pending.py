"""Rules that a folder does not follow yet: `python docs/words.py FOLDER` lists what is to be done. Delete its entry with the last hit."""

from __future__ import annotations

PENDING: dict[str, tuple[str, ...]] = {
    "tests": (
        "name-word",
        "name-pronoun",
        "name-superlative",
        "function-preposition",
        "function-participle",
        "class-participle",
        "docstring-opening",
        "docstring-mood",
        "docstring-shape-first",
        "docstring-parameter-first",
        "docstring-ellipsis",
        "docstring-where",
        "docstring-long",
        "docstring-class",
        "docstring-unit",
        "docstring-word",
        "comment-word",
        "message-word",
    ),
}
