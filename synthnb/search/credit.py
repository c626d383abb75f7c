"""Credit: which move is used next, by what each has earned for its cost so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MEMORY = 0.95  # of what was earned before, with each use of a move
CURIOSITY = 0.15  # share of the choices that are made without looking


class Credit:
    """Adaptive pursuit of what pays, one account a move (Fialho 2010, "Adaptive operator selection").

    Args:
        names: of the moves.
        unit: that costs are in, `seconds` or `renders`.

    Attributes:
        used: what each move has cost in all.
        earned: its points in all.
    """

    def __init__(self, names: Sequence[str], unit: str = "renders"):
        self.names, self.unit = list(names), unit
        self.used = dict.fromkeys(names, 0.0)
        self.earned = dict.fromkeys(names, 0.0)
        self._uses = 0
        self._recent = {name: np.ones(2) for name in names}  # points, and cost in that of a mean use

    def choose(self, rng: np.random.Generator) -> str:
        """The next move: each as often as it paid, none never."""
        paid = np.array([points / cost for points, cost in self._recent.values()])
        chances = (1 - CURIOSITY) * paid / paid.sum() + CURIOSITY / len(paid)
        return self.names[rng.choice(len(chances), p=chances)]

    def earn(self, name: str, points: float | None, cost: float) -> None:
        """Book what a use of a move brought and cost; no points at all, None, cost a mean use at least."""
        self._uses += 1
        self.used[name] += cost
        self.earned[name] += points or 0.0
        mean = sum(self.used.values()) / self._uses
        share = cost / mean if mean else 1.0
        self._recent[name] = MEMORY * self._recent[name] + [
            points or 0.0,
            share if points is not None else max(share, 1.0),
        ]
