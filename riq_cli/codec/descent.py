"""The choice of least cost among a few in a row, tried one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def least(choices: Sequence[float], start: int, cost: Callable[[float], float]) -> tuple[float, float]:
    """The choice of least cost and its cost, going from one to the next from `start` as long as it falls."""
    found = {start: cost(choices[start])}
    for step in (1, -1):
        position = start
        while 0 <= position + step < len(choices):
            found[position + step] = cost(choices[position + step])
            if found[position + step] >= found[position]:
                break
            position += step
        if position != start:
            break
    best = min(found, key=lambda position: found[position])
    return choices[best], found[best]
