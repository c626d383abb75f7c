"""A population: the candidates that a search goes on from, near the target and not all alike."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from synthnb.search.candidate import Candidate
from synthnb.space import ParameterSpace

SIZE = 24
SAME_BASIN = 8  # members of one basin
ELITES = 16  # basins whose best is kept beside
ALIKE = 0.003  # of a distance; of two in a basin that are so near to each other, the better stays
PRESSURE = 0.8  # each member is picked so many times as often as the one before


class Population:
    """The nearest so far, the best first, of which only a few share a basin.

    A basin is how the synth is wired: the algorithm of a DX7, the types of Surge's oscillators. Patches in different
    ones have little to give to each other, and one that is near would soon be the only one.

    Attributes:
        elites: by basin, the nearest there.
    """

    def __init__(self, space: ParameterSpace):
        self.space = space
        self.elites: dict[tuple[int, ...], Candidate] = {}
        self._members: list[Candidate] = []
        self._basins: list[tuple[int, ...]] = []
        self._seen: set[bytes] = set()
        wiring = [*space.given, *(p.name for p in space if re.fullmatch(r".*osc\w*_type", p.name))]
        self._wiring = [space.columns[name] for name in dict.fromkeys(wiring)]

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._members)

    def __getitem__(self, index: int) -> Candidate:
        return self._members[index]

    @property
    def worst(self) -> float:
        """The distance that a candidate has to be under; infinite while there is room."""
        return self._members[-1].distance if len(self) >= SIZE else np.inf

    def basin(self, vector: np.ndarray) -> tuple[int, ...]:
        """How the synth is wired by a vector `(width,)`."""
        return tuple(int(vector[columns].argmax()) for columns in self._wiring)

    def new(self, vectors: np.ndarray) -> np.ndarray:
        """Those of `(n, width)` that it was never asked about before."""
        fresh = [v for v in vectors if (data := v.tobytes()) not in self._seen and not self._seen.add(data)]
        return np.array(fresh, np.float32).reshape(len(fresh), self.space.width)

    def add(self, candidate: Candidate) -> bool:
        """Take a candidate in, if it is near enough. Returns whether it was."""
        basin = self.basin(candidate.vector)
        best = self.elites.get(basin)
        if best is None or candidate.distance < best.distance:
            self.elites[basin] = candidate
            if len(self.elites) > ELITES:
                del self.elites[max(self.elites, key=lambda basin: self.elites[basin].distance)]
        twin = next(
            (i for i in range(len(self)) if self._basins[i] == basin and self._alike(i, candidate)), None
        )
        if twin is not None:
            if self[twin].distance <= candidate.distance:
                return False
            del self._members[twin], self._basins[twin]
        at = int(np.searchsorted([c.distance for c in self], candidate.distance, side="right"))
        self._members.insert(at, candidate)
        self._basins.insert(at, basin)
        alike = [i for i, other in enumerate(self._basins) if other == basin]
        if basin and len(alike) > SAME_BASIN:
            out = alike[-1]
        elif len(self) > SIZE:
            out = len(self) - 1
        else:
            return True
        del self._basins[out]
        return self._members.pop(out) is not candidate

    def _alike(self, index: int, candidate: Candidate) -> bool:
        """Whether a member is as far from the target as makes no difference: mostly it is the same sound."""
        return abs(self[index].distance - candidate.distance) <= ALIKE * candidate.distance

    def pick(self, rng: np.random.Generator) -> Candidate:
        """One of them, the nearer the more often."""
        weights = PRESSURE ** np.arange(len(self))
        return self[rng.choice(len(self), p=weights / weights.sum())]
