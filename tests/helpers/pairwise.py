"""Choosing few combinations of options so that every two values of different options meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Choice = tuple[str, int]


def singles(table: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Each value of each option alone (the first value of an option is its default)."""
    return [{}] + [{name: value} for name, values in table.items() for value in values[1:]]


def pairwise(
    table: Mapping[str, Sequence[Any]], valid: Callable[[dict[str, Any]], bool] = lambda row: True, attempts: int = 20
) -> list[dict[str, Any]]:
    """Combinations of all options in which every pair of values of two options occurs (greedy, the same every time).

    Combinations are `valid`; a pair that no valid one was found for comes alone, with nothing but its two options.
    """
    return _Cover(table, valid).rows(attempts)


class _Cover:
    def __init__(self, table: Mapping[str, Sequence[Any]], valid: Callable[[dict[str, Any]], bool]):
        self.table, self.valid, self.draw = table, valid, random.Random(0)
        self.options = list(table)
        self.rank = {name: position for position, name in enumerate(self.options)}
        self.missing: set[tuple[Choice, Choice]] = {
            ((a, i), (b, j))
            for a, b in itertools.combinations(self.options, 2)
            for i, j in itertools.product(range(len(table[a])), range(len(table[b])))
        }

    def rows(self, attempts: int) -> list[dict[str, Any]]:
        chosen = []
        while self.missing:
            seed = dict(min(self.missing))
            candidates = [self._complete(dict(seed)) for _ in range(attempts)]
            best = max(
                (row for row in candidates if row), key=lambda row: len(self._met(row) & self.missing), default=seed
            )
            self.missing -= self._met(best)
            chosen.append({name: self.table[name][best[name]] for name in self.options if name in best})
        return chosen

    def _complete(self, row: dict[str, int]) -> dict[str, int]:
        """Fill in the options that `row` lacks, in random order, each with a value that meets most missing pairs.

        Where a value keeps or makes the row valid, one of those is chosen. An invalid result comes back empty.
        """
        for name in self.draw.sample(self.options, len(self.options)):
            if name not in row:
                values = range(len(self.table[name]))
                fitting = [i for i in values if self._fits({**row, name: i})] or values
                gains = {i: self._gain(row, (name, i)) for i in fitting}
                most = max(gains.values())
                row[name] = self.draw.choice([i for i, gain in gains.items() if gain == most])
        return row if self._fits(row) else {}

    def _fits(self, row: dict[str, int]) -> bool:
        return self.valid({name: self.table[name][row.get(name, 0)] for name in self.options})

    def _gain(self, row: dict[str, int], choice: Choice) -> int:
        pairs = (tuple(sorted((choice, other), key=lambda c: self.rank[c[0]])) for other in row.items())
        return sum(pair in self.missing for pair in pairs)

    def _met(self, row: Mapping[str, int]) -> set[tuple[Choice, Choice]]:
        return set(itertools.combinations([(name, row[name]) for name in self.options if name in row], 2))
