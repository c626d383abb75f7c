"""Moves: ways from the candidates that a search has to others that may be nearer.

Each is `(state, count, rng) -> vectors (n, width)`, n at most `count` and perhaps 0. Which is used when is decided by
what they earn, see `Credit`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from synthnb.search.state import State

Move = Callable[[State, int, np.random.Generator], np.ndarray]

FROM_NOISE = {"guidance": 2.0, "temperature": 1.0}  # how the flow is sampled without a source
SOURCES = 4  # edits of each source
TUNED = 8  # candidates whose pitch is looked at
STEPS = 10  # of the flow, where it has a source or begins midway


def library(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """The training clips that sound most like the target, each time the next ones; nothing without a library."""
    found = state.model.library
    if found is None:
        return state.nothing
    vectors = found.nearest(state.mel, state.looked_up + count)[state.looked_up :]
    state.looked_up += len(vectors)
    return vectors


def noise(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """What the flow makes of the target alone."""
    return state.model.sample(state.mel, count, seed=_seed(rng), **FROM_NOISE | _guided(state))


def edit(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """What the flow would change in the nearest and some others, at one of several temperatures and guidance scales."""
    sources = [state.population[0]] + [state.population.pick(rng) for _ in range(count // SOURCES - 1)]
    sampling = {"temperature": rng.choice([0.5, 0.8, 1.1]), "guidance": rng.choice([1.0, 1.0, 2.0])}
    return state.model.sample(
        state.mel,
        -(-count // len(sources)),
        (torch.stack([state.mel_of(c) for c in sources]), np.stack([c.vector for c in sources])),
        steps=STEPS,
        seed=_seed(rng),
        **sampling | _guided(state),
    )[:count]


def renoise(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """Some of the nearest taken part of the way back to noise, and finished by the flow (SDEdit, Meng et al. 2022)."""
    vectors = np.stack([state.population.pick(rng).vector for _ in range(count)])
    begun = vectors, rng.uniform(0.4, 0.9)
    sampling = {"temperature": 1.0} | _guided(state)
    return state.model.sample(state.mel, count, begun=begun, steps=STEPS, seed=_seed(rng), **sampling)


def cross(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """Some modules of one taken over by another, interchangeable ones aligned."""

    def child() -> np.ndarray:
        mine, other = _pick(state, 2, rng)
        other = state.genes.align(mine, other)
        for columns in _some_modules(state, rng, rng.choice([0.15, 0.5])):
            mine[columns] = other[columns]
        return mine

    return _children(state, count, child)


def copy(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """A module set like another of its kind, or the two in each other's place: operators, oscillators."""
    genes = state.genes
    if not genes.like:
        return state.nothing

    def child() -> np.ndarray:
        (mine,) = _pick(state, 1, rng)
        kind = genes.like[rng.integers(len(genes.like))]
        a, b = (genes.columns[name] for name in rng.choice(kind, 2, replace=False))
        if rng.random() < 0.5:
            mine[a] = mine[b]
        else:
            mine[a], mine[b] = mine[b], mine[a]
        return mine

    return _children(state, count, child)


def nudge(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """A few scalar parameters moved by a little, in quantiles: common values are large targets there."""
    return _mutated(state, count, rng, redraw=0.0, size=0.05)


def jump(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """A few parameters moved far, or drawn again."""
    return _mutated(state, count, rng, redraw=0.3, size=0.2)


def draw(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """A few parameters drawn from their prior again, categories among them."""
    return _mutated(state, count, rng, redraw=1.0, size=0.0)


def turn(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """A few scalar parameters turned by a step or some, as by hand: in their own scale, where all values are near."""
    genes = state.genes
    turnable = np.flatnonzero(genes.free & genes.scalar)

    def child() -> np.ndarray:
        (mine,) = _pick(state, 1, rng)
        for index in rng.choice(turnable, min(rng.geometric(0.5), len(turnable)), replace=False):
            states, at = genes.parameters[index].states, genes.first[index]
            step = rng.geometric(0.4) / (states - 1) if states else rng.exponential(0.03)
            mine[at] = np.clip(mine[at] + rng.choice([-1, 1]) * step, 0, 1)
        return mine

    return _children(state, count, child)


def difference(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """What two differ by in some modules, added to a third (differential evolution, Storn and Price 1997)."""
    if len(state.population) < 4:
        return state.nothing

    def child() -> np.ndarray:
        mine, one, other = _pick(state, 3, rng)
        one, other = (state.genes.align(mine, v) for v in (one, other))
        q, a, b = state.space.to_quantiles(np.stack([mine, one, other]))
        far = rng.choice([0.3, 0.7])
        for columns in _some_modules(state, rng, 0.4):
            q[columns] += far * (a[columns] - b[columns])
        return state.space.from_quantiles(np.clip(q, 0, 1))

    return _children(state, count, child)


def tune(state: State, count: int, rng: np.random.Generator) -> np.ndarray:
    """Those of the nearest that sound a semitone or more off, transposed to the target's pitch."""
    nearest = list(state.population)[:TUNED] if state.pitch else []
    moved = (state.transpose(c.vector, -off) for c in nearest if (off := state.off_key(c)))
    vectors = [vector for vector in moved if vector is not None][:count]
    return np.array(vectors, np.float32).reshape(-1, state.space.width)


def varied(
    state: State, vector: np.ndarray, strength: float, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Copies of a vector with about that share of the parameters moved about so far; no move, but a wish."""
    genes, quantiles = state.genes, state.space.to_quantiles(np.repeat(vector[None], count, axis=0))
    for q in quantiles:
        for index in np.flatnonzero(genes.free & (rng.random(len(genes.free)) < strength)):
            if genes.scalar[index]:
                genes.nudge(q, index, strength / 2, rng)
            elif rng.random() < strength:
                genes.draw(q, index, rng)
    return state.space.from_quantiles(quantiles)


#: Library and tuning aside, the moves among which a search chooses.
MOVES: dict[str, Move] = {
    move.__name__: move for move in (noise, edit, renoise, cross, copy, nudge, jump, draw, turn, difference)
}
FLOW = ("noise", "edit", "renoise")  #: those that ask the model


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _guided(state: State) -> dict[str, float]:
    return {} if state.guidance is None else {"guidance": state.guidance}


def _pick(state: State, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [state.population.pick(rng).vector.copy() for _ in range(count)]


def _some_modules(state: State, rng: np.random.Generator, share: float) -> list[np.ndarray]:
    """Columns of about that share of the modules, of one at least."""
    modules = list(state.genes.columns.values())
    chosen = rng.random(len(modules)) < share
    chosen[rng.integers(len(modules))] = True
    return [columns for columns, yes in zip(modules, chosen) if yes]


def _children(state: State, count: int, child: Callable[[], np.ndarray]) -> np.ndarray:
    return np.stack([child() for _ in range(count)])


def _mutated(state: State, count: int, rng: np.random.Generator, redraw: float, size: float) -> np.ndarray:
    """Copies with a few parameters nudged by about `size`, or drawn from their prior with probability `redraw`."""
    genes, quantiles = state.genes, state.space.to_quantiles(np.stack(_pick(state, count, rng)))
    free = np.flatnonzero(genes.free)
    for q in quantiles:
        for index in rng.choice(free, min(rng.geometric(0.4), len(free)), replace=False):
            if rng.random() < redraw or not genes.scalar[index]:
                genes.draw(q, index, rng)
            else:
                genes.nudge(q, index, size, rng)
    return state.space.from_quantiles(quantiles)
