"""Words that go, in what people read: docstrings and comments, messages, and Markdown. What stands in backquotes is code, and stays."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from word_rules.source import Hit, PythonFile, vocabulary

WORDS = {
    r"(?:un)?told(?! apart)|tells?(?! (?:\w+ )*apart)|telling": "say, report, return, notify, distinguish",
    r"beside": "next to, in addition to, with",
    r"aside|meanwhile": "separate, except; while, in a thread",
    r"anew": "again",
    r"whoever|whomever|nobody|somebody|anybody|everybody": "the actor: client, caller, worker; anyone, no one",
    r"as far as": "if, where",
    r"in place of": "instead of",
    r"(?:the|its|their|at) begins?(?! to)": "the start",
    r"(?:is|are|was|were|been|while|Redis|queue|service) away(?! from)": "unavailable, lost",
    r"of ours|as such": "Opsin's, our own; or nothing",
    r"(?<![Tt]here )(?:is|are|was|were) no (?!longer|more\b|such|one\b|fewer|less|different|later|earlier|bigger|larger|worse)\w+":
        "is not a …, is not valid …",
}  # fmt: skip
WORD = re.compile(r"(?<![\w.-])(?:" + "|".join(f"(?P<w{index}>{word})" for index, word in enumerate(WORDS)) + r")(?![\w-])", re.I)
INSTEAD = list(WORDS.values())
EVENTS = re.compile(r"\b(away|stands|drains|hangs|goodbye|admits)\b")
LOGS = vocabulary("debug info warning error exception critical")
SPOKEN = {"echo", "secho", "print", "Problem", "BadParameter", "Option", "Argument", "Field", "fail"}
SPOKEN_KEYWORDS = {"help", "description", "detail", "title", "epilog", "short_help"}


def hits(line: int, text: str) -> Iterator[Hit]:
    """Find the words that go in a stretch of prose that begins at a line."""
    text = re.sub(r"`[^`]*`", lambda code: re.sub(r"[^\n]", "`", code[0]), text)
    for found in WORD.finditer(text):
        yield line + text.count("\n", 0, found.start()), f"{' '.join(found[0].split())!r}: {INSTEAD[int(found.lastgroup[1:])]}"


def docstring_words(source: PythonFile) -> Iterator[Hit]:
    for docstring in source.docstrings:
        yield from hits(docstring.line, docstring.text)


def comment_words(source: PythonFile) -> Iterator[Hit]:
    if not any(WORD.search(comment) for comment in re.findall("#(.*)", source.text)):
        return  # most files, since reading their tokens takes long
    for line, comment in source.comments:
        yield from hits(line, comment)


def message_words(source: PythonFile) -> Iterator[Hit]:
    for line, message in sorted(set(messages(source))):
        yield from hits(line, message)


def log_words(source: PythonFile) -> Iterator[Hit]:
    for node in source.nodes:
        if isinstance(node, ast.Call) and _called_name(node) in LOGS and isinstance(node.func, ast.Attribute) and node.args:
            for line, event in _strings(node.args[0]):
                if found := EVENTS.search(event):
                    yield line, f"{event!r}: instead of {found[0]!r} say subject and state: 'redis unavailable'"


def messages(source: PythonFile) -> Iterator[Hit]:
    """Find the strings that people read: of exceptions, answers, commands, their help, and the log."""
    for node in source.nodes:
        match node:
            case ast.Raise(exc=ast.Call(args=arguments, keywords=keywords)):
                for argument in (*arguments, *(keyword.value for keyword in keywords)):
                    yield from _strings(argument)
            case ast.Call() if _called_name(node) in SPOKEN or (_called_name(node) in LOGS and isinstance(node.func, ast.Attribute)):
                for argument in node.args:
                    yield from _strings(argument)
            case ast.keyword(arg=name) if name in SPOKEN_KEYWORDS:
                yield from _strings(node.value)


def _called_name(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _strings(node: ast.AST) -> Iterator[Hit]:
    """Find literals; an f-string's parts are one, with … for each value."""
    if isinstance(node, ast.JoinedStr):
        yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


def markdown_words(text: str) -> Iterator[Hit]:
    """Find the words that go in Markdown, outside of blocks of code, backquotes and link targets."""
    fenced, lines = False, []
    for line in text.splitlines():
        is_fence = line.lstrip().startswith("```")
        lines.append("" if fenced or is_fence else re.sub(r"\]\([^)]*\)", "]", line))
        fenced ^= is_fence
    yield from hits(1, "\n".join(lines))


RULES = {
    "docstring-word": docstring_words,
    "comment-word": comment_words,
    "message-word": message_words,
    "log-word": log_words,
}
