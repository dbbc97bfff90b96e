"""Rules on names: of files, classes, functions, parameters, variables and constants."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from word_rules.source import Function, Hit, PythonFile, decorators, parts, vocabulary

WORDS = {
    **dict.fromkeys(("told", "tell", "tells", "telling", "untold"), "reply, reported, known"),
    **dict.fromkeys(("asked",), "requested, options, query"),
    **dict.fromkeys(("said", "heard", "glance", "looking"), "what is computed or read: logits, samples, detection"),
    **dict.fromkeys(("begin", "began"), "start, started_at"),
    **dict.fromkeys(("beside", "aside", "apart"), "with, next_to, separate"),
    **dict.fromkeys(("nobody", "somebody", "anybody", "everybody", "whoever", "mine"), "the actor: client, caller, worker"),
    **dict.fromkeys(("anew", "hither", "lately"), "again, recent"),
    **dict.fromkeys(("hoard", "bury", "mend", "freight", "desertion", "wish", "wished", "lone", "visit", "visits"), "the usual term"),
}
PRONOUNS = vocabulary(
    "own whole given known wanted told asked held kept shown there here together beside most least more "
    "why how what where who whom which when whose"
)
SUPERLATIVE = re.compile(r"^_?(MOST|LONGEST|LARGEST|FEWEST|SHORTEST|LATEST|NARROWEST|FARTHEST|FURTHEST|LEAST|SLOWEST|OLDEST|BIGGEST)(_|$)")
PREPOSITION = re.compile(r"^_?(of|in|by|at|for|beside|under|around)(_|$)")
IRREGULAR = "told kept sent found made drawn written shown given taken seen heard known spent left begun held gone"
PARTICIPLE = re.compile(rf"^_?([a-z]*[a-df-z]ed|{IRREGULAR.replace(' ', '|')})$")
NOT_PARTICIPLES = vocabulary("embed shed sled red bed led wed")
CLASS_PARTICIPLE = re.compile(
    rf"^_?([A-Z][a-z]*[a-df-z]ed|[A-Z](?!\w*string$)[a-z]{{2,}}ing|{'|'.join(word.title() for word in IRREGULAR.split())})$"
)
CLASS_NOUNS = vocabulary(
    "Matching Masking Spacing Coupling Supervised Sized Sharded Drawing Recording String Embedding Padding Encoding Setting "
    "Training Mapping Merging Timing Inpainting Sighting Reading Building Rendering Warning Sampling Tokenizing "
    "Failed Filled Refused Shared Red"
)
MODULE_NOUNS = vocabulary(
    "training merging masking pooling sampling blending timing embedding matching tracking rendering distributed supervised labelled "
    "batching scaling spacing warping padding encoding decoding tokenizing hashing signing streaming loading speed typing string "
    "fetching routing logging tuning windowing importing serving monitoring compositing mapping naming mixing "
    "compiled extending tracing pretraining preprocessing inpainting embed unsupported pending"
)
ALIAS = re.compile(r"(npt\.)?NDArray\[|np\.ndarray\[|Tensor$")
FORMAT_FIELDS = {
    "server/gateway/inference/body.py": ("on_part_begin",),
    "server/http/protocol.py": ("on_message_begin",),
    "server/queue/script.py": ("own",),
    "starters/data/images/package_images.py": ("most",),
    "starters/data/people/motions.py": ("begin",),
}
"""Names that recipes, messages and callbacks of libraries have, by file: they cannot change."""
MAX_TEST_NAME = 60
MAX_LINES = 400


def _free_names(source: PythonFile) -> Iterator[Hit]:
    fixed = FORMAT_FIELDS.get(str(source.path), ())
    return ((line, name) for line, name in source.names if name not in fixed)


def words(source: PythonFile) -> Iterator[Hit]:
    for line, name in _free_names(source):
        for word in sorted(set(parts(name)) & WORDS.keys()):
            if not (word == "visit" and name.startswith(("visit_", "generic_visit"))):
                yield line, f"{name}: instead of {word!r} say {WORDS[word]}"


def pronouns(source: PythonFile) -> Iterator[Hit]:
    for line, name in _free_names(source):
        if name.strip("_") in PRONOUNS:
            yield line, f"{name}: name it by a noun (options, max_count, reason, path, …)"


def superlatives(source: PythonFile) -> Iterator[Hit]:
    for line, name in source.names:
        if SUPERLATIVE.match(name):
            yield line, f"{name}: MAX_… or MIN_…, with the unit"


def prepositions(source: PythonFile) -> Iterator[Hit]:
    for function in source.functions:
        if PREPOSITION.match(function.name):
            yield function.lineno, f"{function.name}: begin with a verb, or end with the preposition: error_to_problem, from_…, group_by_…"


def participles(source: PythonFile) -> Iterator[Hit]:
    """Find functions that are called what they return: `decoded`, not `decode`."""
    for function in source.functions:
        name = function.name.strip("_")
        is_state = any("property" in decorator or decorator == "fixture" for decorator in decorators(function))
        returns_bool = function.returns is not None and ast.unparse(function.returns) == "bool"
        if PARTICIPLE.match(name) and name not in NOT_PARTICIPLES and not is_state and not returns_bool:
            yield function.lineno, f"{function.name}: name the function by a verb: decode, not decoded"


def class_participles(source: PythonFile) -> Iterator[Hit]:
    for node in source.classes:
        if CLASS_PARTICIPLE.match(node.name) and node.name.strip("_") not in CLASS_NOUNS:
            yield node.lineno, f"{node.name}: name the class by a noun: PersonAnnotation, not Drawn"


def module_participles(source: PythonFile) -> Iterator[Hit]:
    name = source.path.stem
    last = parts(name)[-1] if parts(name) else ""
    if not source.is_test and re.search(r"([a-df-z]ed|ing)$", last) and last not in MODULE_NOUNS:
        yield 1, f"{name}: name the module by a noun"


def tests(source: PythonFile) -> Iterator[Hit]:
    for function in source.functions:
        if function.name.startswith("test_") and source.is_test:
            if len(function.name) > MAX_TEST_NAME:
                yield (
                    function.lineno,
                    f"{function.name}: {len(function.name)} characters, more than {MAX_TEST_NAME}; the rest to its docstring",
                )
            if re.search(r"_lines?_\d+", function.name):
                yield function.lineno, f"{function.name}: a number of a line; mark it with queue_line instead"


def length(source: PythonFile) -> Iterator[Hit]:
    lines = source.text.count("\n")
    if lines > MAX_LINES and not source.is_test:
        yield 1, f"{lines} lines, more than {MAX_LINES}: split it"


def repeated_classes(sources: Sequence[PythonFile]) -> Iterator[tuple[PythonFile, int, str]]:
    """Find names that several top-level classes have, outside of tests. A client's class may be called as the service's."""
    places = defaultdict[str, list[tuple[PythonFile, int]]](list)
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not source.is_test:
                places[node.name].append((source, node.lineno))
    for name, found in places.items():
        if len({source.path.parts[0] == "opsin" for source, _ in found}) < len(found):
            for source, line in found:
                others = ", ".join(str(other.path) for other, _ in found if other is not source)
                yield source, line, f"{name}: also the name of a class in {others}"


def repeated_aliases(sources: Sequence[PythonFile]) -> Iterator[tuple[PythonFile, int, str]]:
    """Find names of arrays, `Points = NDArray[…]`, that several modules give, outside of tests."""
    places = defaultdict[str, list[tuple[PythonFile, int]]](list)
    for source in sources:
        for node in source.tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if not source.is_test and ALIAS.match(ast.unparse(value)):
                    places[name].append((source, node.lineno))
    for name, found in places.items():
        for source, line in found if len(found) > 1 else ():
            yield source, line, f"{name}: {len(found)} modules define this alias; import it from one of them"


def replaced_words(source: PythonFile, replaced: dict[str, str]) -> Iterator[Hit]:
    """Find words that the glossary replaces, by others, in names of modules, classes and functions."""
    named = [(source.path.stem, 1), *((node.name, node.lineno) for node in source.nodes if isinstance(node, ast.ClassDef | Function))]
    for name, line in named:
        for word in sorted(set(parts(name)) & replaced.keys()):
            yield line, f"{name}: the glossary says {replaced[word]!r} instead of {word!r}"


RULES = {
    "name-word": words,
    "name-pronoun": pronouns,
    "name-superlative": superlatives,
    "function-preposition": prepositions,
    "function-participle": participles,
    "class-participle": class_participles,
    "module-participle": module_participles,
    "test-name": tests,
    "file-length": length,
}
