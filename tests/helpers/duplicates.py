"""Finds runs of code lines that stand twice.

Lines are compared without their indentation, comments and trailing commas. Blank lines, comments, docstrings, imports
and lines of closing brackets do not count, and neither do the parameters of a constructor under `@register_to_config`:
they are the schema of a file, whose names, order and defaults are given.
"""

from __future__ import annotations

import ast
import io
import itertools
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

MEANINGLESS = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}


class Line(NamedTuple):
    path: Path
    number: int
    text: str


class Duplicate(NamedTuple):
    """The same `length` lines, from `first` on and from `second` on."""

    first: Line
    second: Line
    length: int


def _span(node: ast.AST) -> range:
    return range(node.lineno, node.end_lineno + 1)  # type: ignore[attr-defined]


def _left_out(tree: ast.AST) -> Iterator[range]:
    """Line numbers of imports, docstrings and config schemas."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield _span(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield _span(node)
        if isinstance(node, ast.FunctionDef) and "register_to_config" in map(ast.unparse, node.decorator_list):
            yield range(node.lineno, node.body[0].lineno)


def code_lines(path: Path) -> list[Line]:
    """The lines that count, normalised: tokens joined by single blanks."""
    source = path.read_text(encoding="utf-8")
    skipped = {number for span in _left_out(ast.parse(source)) for number in span}
    tokens: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in MEANINGLESS and token.string.strip():
            tokens[token.start[0]].append(token.string)
    lines = []
    for number, strings in sorted(tokens.items()):
        text = " ".join(strings).rstrip(" ,")
        if number not in skipped and text.strip(")]} ,:"):
            lines.append(Line(path, number, text))
    return lines


def find_duplicates(paths: Iterable[Path], length: int = 6) -> list[Duplicate]:
    """Every longest run of at least `length` lines that stands in two places (overlapping ones are not two)."""
    files = [code_lines(path) for path in paths]
    windows: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for f, lines in enumerate(files):
        for start in range(len(lines) - length + 1):
            windows[tuple(line.text for line in lines[start : start + length])].append((f, start))

    found: list[Duplicate] = []
    covered: set[tuple[int, int, int, int]] = set()
    for places in windows.values():
        for (f, a), (g, b) in itertools.combinations(places, 2):
            if (f, a, g, b) in covered or (f == g and b - a < length):
                continue
            pairs = zip(files[f][a:], files[g][b:], strict=False)
            run = sum(1 for _ in itertools.takewhile(lambda pair: pair[0].text == pair[1].text, pairs))
            covered.update((f, a + i, g, b + i) for i in range(run))
            found.append(Duplicate(files[f][a], files[g][b], run))
    return found
