"""Plain English in everything that a person reads: docstrings, comments, help texts, errors and documents."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from typecheck import ROOT

FORBIDDEN = [
    # a count that is not named
    r"\bso many\b",
    # noun clauses in place of nouns
    r"\b[Ww]hat (?:is|was|are|were|has|had|have)\b(?![^.]*\?)",
    r"^What \w+ (?:is|are|was|were)\b",
    r": what (?:the|a|an|it|they)\b",
    r"\b(?:that|those) which\b",
    r"\bEverything that\b",
    r"\bfor there\b",
    r"\bas (?:it|they) (?:finds?|sees?) (?:them|it)\b",
    # fragments that continue a name
    r"(?:^|[.:;] )Of (?:the|that|them|it|its|those|these)\b",
    r"^\s+[\w, ]+: of (?:the|a|an|each|every|this|that|its|all|them|it)\b",
    r"\bof it\.",
    r"; needed\.",
    # found and expected are not named
    r"(?<!here )\bis no (?!longer\b|more\b|less\b|later\b|larger\b|smaller\b|need\b)\w",
    # phrases with a plain form
    r"\bas usual\b",
    r"\bfor real\b",
    r"\bthat are real\b",
    r"\bto come\b(?=[.;,]|$)",
    r"\bsays? so\b",
    r"\bdo(?:es)? without\b(?=[.;,]|$)",
    r"\bnot even\b",
    r"\bNot there yet\b",
    # words that the field has others for: interleaved, coded input, available memory, adapter file, chunks
    r"\bin turns\b",
    r"(?<![-\w`])sites?\b(?![-`:])",
    r"\bheadroom\b",
    r"\bdeltas?\b(?! rule)",
    r"(?<!-)\bpieces\b(?![`:]|, type_k)",  # not the option and field of that name
]
PATTERN = re.compile("|".join(f"(?:{pattern})" for pattern in FORBIDDEN))

WORSE = [
    "At most so many new tokens.",
    "Of the text, at most.",
    "Also passkeys, told so many tokens before they are asked for",
    "Of the routers.",
    "Routed, in each layer. Of them, for each token.",
    "Of that, so many at most, in documents drawn at random.",
    "        seed: of the routers.",
    "Sparse layout: the UTF-8 text that decides on dead zones; needed.",
    "write what was measured to FILE",
    "- as usual.",
    "Begin no measurement after this time, and say what is left out.",
    "Keep the contexts, for a command to come.",
    "What models are measured on is never trained on",
    "as it is written, one score at a time: what the fast form is compared with",
    "Everything that decides what a build yields.",
    "is no function of the engine's CPU backend",
    "in words of their own; others do without.",
    "each token finds them as it sees them",
    "If not even k = 64 keeps it, the command says so and writes nothing.",
    "spikes that are real",
    "measured in turns",
    "counts of each site",
    "the delta of a distillation",
]
BETTER = [
    "Maximum number of tokens to generate",
    "Maximum number of tokens to evaluate",
    "Run passkey retrieval at these distances (tokens)",
    "        seed: Random seed for the router weights.",
    "Limit to N tokens (random documents)",
    "Calibration text (required)",
    "Write results as JSON (- for stdout)",
    "Stop starting new measurements after SECONDS; list the skipped ones",
    "Decontamination: reject training text that contains evaluation paragraphs",
    "Build inputs; their hash is the cache key",
    "symbol not found in the CPU backend",
    "k_j is decayed in place, so token i reads k_j * prod(a) over j < t <= i",
    "If k = 64 still exceeds the budget, nothing is written",
    "Of 28 layers, 14 are GLA. What is a spike? There is no such layer; it is no longer read.",
    "the generalised delta rule of RWKV-7",
]

Prose = Iterator[tuple[int, str]]
"""Texts with the number of their first line."""


def python_prose(path: Path) -> Prose:
    """Comments, docstrings, help texts and errors."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
    for node in ast.walk(ast.parse(source)):
        texts: list[ast.AST] = []
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts = [node.value]
        elif isinstance(node, ast.Call):
            texts = [each.value for each in node.keywords if each.arg in ("help", "hint", "expected")]
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            texts += node.args[:1] if name.lower().endswith("error") else []
        for text in (inner for each in texts for inner in ast.walk(each)):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.lineno, text.value


def markdown_prose(path: Path) -> Prose:
    """Lines outside code."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith("    "):
            yield number, line


def cpp_prose(path: Path) -> Prose:
    """Comments."""
    source = path.read_text(encoding="utf-8")
    for comment in re.finditer(r"//[^\n]*|/\*.*?\*/", source, re.DOTALL):
        yield source[: comment.start()].count("\n") + 1, comment[0].lstrip("/* ")


def patch_prose(path: Path) -> Prose:
    """The text before a patch's first file."""
    yield 1, path.read_text(encoding="utf-8").partition("\ndiff --git")[0]


FOLDERS = ("sb_edge", "convert", "quant", "distill", "bench", "examples", "tests")
READERS = {
    python_prose: [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")],
    markdown_prose: [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/**/*.md")],
    cpp_prose: [path for path in (ROOT / "patches/overlay").rglob("*") if path.is_file()],
    patch_prose: list((ROOT / "patches").glob("*.patch")),
}
NOT_PROSE = {Path(__file__), ROOT / "docs/transcript.md"}
"""This list of phrases, and the words of a model."""


def phrases(text: str) -> Iterator[tuple[int, str]]:
    """Forbidden phrases and the lines that they begin in, from 0; a phrase may go on in the next line."""
    lines = text.split("\n")
    for at, (line, following) in enumerate(zip(lines, [*lines[1:], ""], strict=True)):
        match = PATTERN.search(f"{line} {following.strip()}".rstrip())
        if match and match.start() < len(line):
            yield at, f"{match[0].strip()}: {line.strip()}"


def test_the_patterns_tell_plain_english_from_the_other() -> None:
    assert [text for text in WORSE if not PATTERN.search(text)] == []
    assert [text for text in BETTER if PATTERN.search(text)] == []
    assert list(phrases("First\nline, so\nmany words")) == [(1, "so many: line, so")]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_english_is_plain(reader) -> None:
    assert READERS[reader]
    found = [
        f"{path.relative_to(ROOT)}:{first + at}: {phrase}"
        for path in sorted(set(READERS[reader]) - NOT_PROSE)
        for first, text in reader(path)
        for at, phrase in phrases(text)
    ]
    assert not found, "\n".join(found)


def test_no_help_begins_with_of() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "sb_edge/cli").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "help"
        for text in ast.walk(node.value)
        if isinstance(text, ast.Constant) and str(text.value).startswith("Of ")
    ]
    assert not found, "\n".join(found)
