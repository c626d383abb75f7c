"""What a search changes in a patch: its parameters by number, to mutate and to cross."""

from __future__ import annotations

import functools
from collections.abc import Collection

import numpy as np
from scipy.optimize import linear_sum_assignment

from synthnb.space import ParameterSpace


class Genes:
    """The parameters of a space, in vector order.

    Attributes:
        columns: of each module, without what is held.
        free: bool `(parameters,)`, those that may change.
        scalar: bool `(parameters,)`, all but categories.
        first: the first column of each, `(parameters,)`.
    """

    def __init__(self, space: ParameterSpace):
        self.space, self.parameters = space, list(space)
        self.columns = dict(space.modules)
        self.scalar = np.array([p.kind != "categorical" for p in self.parameters])
        self.first = np.array([space.columns[p.name].start for p in self.parameters])
        self.free = np.ones(len(self.parameters), bool)

    def hold(self, names: Collection[str]) -> None:
        """Leave these parameters as they are, whatever a move does."""
        self.free = np.array([p.name not in names for p in self.parameters])
        held = np.zeros(self.space.width, bool)
        for name in names:
            held[self.space.columns[name]] = True
        self.columns = {name: columns[~held[columns]] for name, columns in self.space.modules.items()}

    @functools.cached_property
    def like(self) -> list[list[str]]:
        """Modules that have the same parameters: the operators of a DX7, the oscillators of Surge."""
        shapes: dict[tuple, list[str]] = {}
        for module in self.space.modules:
            shape = tuple((p.name_in("*"), p.span) for p in self.parameters if p.module == module)
            shapes.setdefault(shape, []).append(module)
        return [modules for modules in shapes.values() if len(modules) > 1]

    def draw(self, q: np.ndarray, index: int, rng: np.random.Generator) -> None:
        """Draw one parameter of quantiles `(width,)` from its prior again, in place."""
        p, at = self.parameters[index], self.first[index]
        if self.scalar[index]:
            q[at] = rng.random()
        else:
            q[at : at + p.width] = 0
            q[at + int(p.from_quantile(rng.random()))] = 1

    def nudge(self, q: np.ndarray, index: int, size: float, rng: np.random.Generator) -> None:
        """Move one scalar parameter of quantiles `(width,)` by about `size`, in place; ends reflect."""
        at = self.first[index]
        q[at] = 1 - abs(1 - abs(q[at] + size * rng.standard_normal()) % 2)

    def align(self, mine: np.ndarray, other: np.ndarray) -> np.ndarray:
        """`other (width,)` with its interchangeable modules in the order that is nearest to `mine`."""
        space = self.space
        if any(
            not np.array_equal(mine[space.columns[name]], other[space.columns[name]]) for name in space.given
        ):
            return other
        aligned = other
        for blocks in space.interchangeable_in(space.decode(mine)[0]):
            columns = [np.concatenate([space.modules[module] for module in block]) for block in blocks]
            cost = np.array([[np.abs(mine[m] - aligned[o]).sum() for o in columns] for m in columns])
            moved = aligned.copy()
            for row, column in zip(*linear_sum_assignment(cost)):
                moved[columns[row]] = aligned[columns[column]]
            aligned = moved
        return aligned
