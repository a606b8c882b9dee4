"""Choosing few combinations of options so that every two values of different options meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

Choice = tuple[str, int]


def singles(table: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Each value of each option alone (the first value of an option is its default)."""
    return [{}] + [{name: value} for name, values in table.items() for value in values[1:]]


def pairwise(table: Mapping[str, Sequence[Any]], attempts: int = 40) -> list[dict[str, Any]]:
    """Combinations of all options in which every pair of values of two options occurs (greedy, the same every time)."""
    draw = random.Random(0)
    options = list(table)
    indices = {name: range(len(values)) for name, values in table.items()}
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(options, 2)
        for i, j in itertools.product(indices[a], indices[b])
    }
    chosen: list[dict[str, Any]] = []
    while missing:
        seed = min(missing)
        candidates = [_complete(dict(seed), options, indices, missing, draw) for _ in range(attempts)]
        best = max(candidates, key=lambda row: len(_met(row, options) & missing))
        missing -= _met(best, options)
        chosen.append({name: table[name][best[name]] for name in options})
    return chosen


def _complete(
    row: dict[str, int],
    options: Sequence[str],
    indices: Mapping[str, Sequence[int]],
    missing: set[tuple[Choice, Choice]],
    draw: random.Random,
) -> dict[str, int]:
    """Fill in the options that `row` lacks, in random order, each with the value that meets most missing pairs."""
    rank = {name: position for position, name in enumerate(options)}
    for name in draw.sample(options, len(options)):
        if name not in row:
            gains = {
                i: sum(tuple(sorted(((name, i), other), key=lambda c: rank[c[0]])) in missing for other in row.items())
                for i in indices[name]
            }
            most = max(gains.values())
            row[name] = draw.choice([i for i, gain in gains.items() if gain == most])
    return row


def _met(row: Mapping[str, int], options: Sequence[str]) -> set[tuple[Choice, Choice]]:
    return set(itertools.combinations([(name, row[name]) for name in options], 2))
