"""Rounds: everything that is compared is measured once in each round.

Rule 1. A ratio is taken within a round, and the median of these ratios is reported.
Rule 2. Each round begins with another item, so that none always runs first.
Rule 3. The garbage collector stays on, as in production, and collects before each round.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command line; None means the benchmark's own default."""

    rounds: int | None = None
    processes: int | None = None
    quick: bool = False
    loop: str = "none"


def turns(items: Sequence[T], rounds: int) -> Iterator[list[T]]:
    """``items`` in the order of each round."""
    for number in range(rounds):
        gc.collect()
        first = number % len(items)
        yield [*items[first:], *items[:first]]


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios, pair by pair."""
    return median(a / b for a, b in zip(above, below, strict=True))


def over(costs: Sequence[float], base: Sequence[float]) -> list[float]:
    """What each round cost more than the base did in the same round."""
    return [cost - bare for cost, bare in zip(costs, base, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
