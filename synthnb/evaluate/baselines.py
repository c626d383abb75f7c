"""Searches to compare with, each in a few lines: random, CMA-ES, differential evolution, a genetic algorithm.

A search is a generator: it yields vectors `(n, width)` and is sent their distances `(n,)`, for as long as it is asked.
So it neither plays nor measures anything, and all are counted alike. All move in the space's quantiles, where every
parameter has the same scale.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Generator

import cma
import numpy as np
import torch

from synthnb.features import log_mel
from synthnb.metrics import Distance
from synthnb.pitch import find_pitch
from synthnb.search.candidate import Press
from synthnb.search.matcher import Matcher
from synthnb.space import SpaceError

Search = Generator[np.ndarray, np.ndarray, None]

NEAREST = 32  # library clips that a search begins with
POPULATION = 16  # of CMA-ES and of random search
SIGMA = 0.06  # of the first CMA-ES steps around a patch, in quantiles
WIDE = 0.25  # of those from the mean patch: about as far as the prior spreads
FIRST, PROPOSED = 8, 32  # of today's search: library clips, and all before its CMA-ES
FROM_NOISE = {"guidance": 3.0, "temperature": 0.6}
STEEP = 6  # how often MSS over the bound counts in today's distance, beside the once that all of it counts


class Task:
    """One target for one search.

    Attributes:
        target: float32 `(channels, samples)`, as the synth could make it.
        distance: what ranks.
        press: the key that all is played with, that of the target.
        rng: for all that is random.
    """

    def __init__(
        self, matcher: Matcher, audio: np.ndarray, ranking: Callable[[np.ndarray], Distance], seed: int
    ):
        self.matcher, self.model, self.space = matcher, matcher.model, matcher.space
        self.target = matcher.prepare_target(audio)
        self.distance = ranking(self.target)
        self.pitch = find_pitch(self.target)
        self.press = Press(self.pitch and self.pitch.key)
        self.seed, self.rng = seed, np.random.default_rng(seed)

    @functools.cached_property
    def mel(self) -> torch.Tensor:
        """The target's log-mel spectrogram."""
        return log_mel(torch.from_numpy(self.target))

    def nearest(self, count: int) -> np.ndarray:
        """The `count` clips of the model's library that sound most like it; without a library, drawn by the flow."""
        if self.model.library is not None:
            return self.model.library.nearest(self.mel, count)
        return self.model.sample(self.mel, count, seed=self.seed, **FROM_NOISE)

    def render(self, vector: np.ndarray) -> np.ndarray:
        """The sound of a vector, float32 `(channels, samples)`, played anew: with new phases, if they are random."""
        synth, seconds = self.matcher.synth, self.space.seconds
        return synth.render(*self.press(synth, *self.space.decode(vector), seconds), seconds)[
            : synth.channels
        ]

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Distances `(n,)` of vectors `(n, width)`, on all cores that the matcher has."""
        return self.matcher.player.score(self.distance, vectors, self.press)


def random_search(task: Task) -> Search:
    """Patches drawn from the prior."""
    while True:
        yield np.stack([task.space.encode(*task.space.sample(task.rng)) for _ in range(POPULATION)])


def cma_es(task: Task, centre: np.ndarray, columns: list[int], sigma: float) -> Search:
    """Diagonal CMA-ES (Ros and Hansen 2008, by Hansen's `cma`) of some columns around `centre`, in quantiles."""
    options = {
        "bounds": [0, 1],
        "popsize": POPULATION,
        "CMA_diagonal": True,
        "seed": np.nan,  # leave NumPy's global generator alone
        "randn": lambda *shape: task.rng.standard_normal(shape),
        "verbose": -9,
    }
    search = cma.CMAEvolutionStrategy(centre[columns].astype(float), sigma, options)
    while not search.stop():
        points = search.ask()
        quantiles = np.repeat(centre[None], len(points), axis=0)
        quantiles[:, columns] = points
        values = yield task.space.from_quantiles(quantiles)
        search.tell(points, values.tolist())


def cma_from_mean(task: Task) -> Search:
    """CMA-ES from the mean of the prior; of a category the choice with the greatest number is taken."""
    mean, _ = task.space.moments()
    yield from cma_es(task, mean, list(range(task.space.width)), WIDE)


def cma_from_nearest(task: Task) -> Search:
    """CMA-ES around the best of the nearest; categories stay as that has them."""
    people, values = yield from _nearest(task)
    yield from cma_es(task, people[values.argmin()], _scalars(task), SIGMA)


def differential_evolution(task: Task) -> Search:
    """DE/best/1/bin (Storn and Price 1997) with SciPy's settings; a category's numbers cross over together."""
    people, values = yield from _nearest(task)
    widths, count = [p.width for p in task.space], len(people)
    while True:
        step = task.rng.uniform(0.5, 1.0)
        one, other = (people[task.rng.permutation(count)] for _ in range(2))
        mutants = 1 - np.abs(
            1 - np.abs(people[values.argmin()] + step * (one - other))
        )  # reflected at 0 and 1
        crossed = task.rng.random((count, len(widths))) < 0.7
        crossed[np.arange(count), task.rng.integers(len(widths), size=count)] = True
        trials = np.where(np.repeat(crossed, widths, axis=1), mutants, people)
        found = yield task.space.from_quantiles(trials)
        better = found <= values
        people[better], values[better] = trials[better], found[better]


def genetic_algorithm(task: Task) -> Search:
    """A plain GA: parents by tournaments of two, uniform crossover, about three mutations a child, the best 32 stay.

    A mutated scalar moves by a tenth of its range, a mutated category is drawn from the prior.
    """
    people, values = yield from _nearest(task)
    widths, count = [p.width for p in task.space], len(people)
    while True:
        rivals = task.rng.integers(count, size=(2, count, 2))
        mother, father = (
            people[np.where(values[a] <= values[b], a, b)] for a, b in np.moveaxis(rivals, 2, 1)
        )
        taken = np.repeat(task.rng.random((count, len(widths))) < 0.5, widths, axis=1)
        children = np.where(taken, mother, father)
        changed = np.repeat(task.rng.random((count, len(widths))) < 3 / len(widths), widths, axis=1)
        drawn = np.stack([task.space.encode(*task.space.sample(task.rng)) for _ in people])
        scalars = _scalars(task)
        nudged = children[:, scalars] + 0.1 * task.rng.standard_normal((count, len(scalars)))
        drawn[:, scalars] = np.clip(nudged, 0, 1)
        children = np.where(changed, drawn, children)
        found = yield task.space.from_quantiles(children)
        people, values = np.concatenate([people, children]), np.concatenate([values, found])
        order = values.argsort(kind="stable")[:count]
        people, values = people[order], values[order]


def catcma(task: Task) -> Search:
    """CatCMA with margin (Hamano and others 2025, arXiv 2504.07884, by the package `cmaes`) from the nearest.

    Its Gaussian begins around the best, its categories at nine tenths with the best's, else with those of the nearest
    or any.
    """
    from cmaes import CatCMAwM

    people, values = yield from _nearest(task)
    best, space = people[values.argmin()], task.space
    at = {p.name: space.columns[p.name].start for p in space}
    free = [p for p in space if p.kind == "continuous"]
    steps = {
        p.name: np.unique(p.to_quantile(np.linspace(0, 1, p.states))) for p in space if p.kind == "integer"
    }
    stepped = [space[name] for name, places in steps.items() if len(places) > 1]
    choices = [p for p in space if p.kind == "categorical" and p.width > 1]
    odds = np.zeros((len(choices), max(p.width for p in choices)))
    for row, p in zip(odds, choices):
        block = space.columns[p.name]
        row[: p.width] = 0.9 * best[block] + 0.05 * people[:, block].mean(axis=0) + 0.05 / p.width
    numbers = [at[p.name] for p in (*free, *stepped)]
    search = CatCMAwM(
        x_space=[[0, 1]] * len(free) or None,
        z_space=[steps[p.name].tolist() for p in stepped] or None,
        c_space=[p.width for p in choices],
        population_size=POPULATION,
        mean=best[numbers].astype(float),
        sigma=SIGMA,
        cov=np.eye(len(numbers)),
        cat_param=odds,
        seed=int(task.rng.integers(2**31)),
    )
    while not search.should_stop():
        asked = [search.ask() for _ in range(POPULATION)]
        quantiles = np.repeat(best[None], POPULATION, axis=0)
        for row, point in zip(quantiles, asked):
            row[numbers] = [*(point.x if free else ()), *(point.z if stepped else ())]
            for p, chosen in zip(choices, point.c):
                row[space.columns[p.name]] = chosen[: p.width]
        values = yield space.from_quantiles(quantiles)
        search.tell(list(zip(asked, values.tolist())))


def refinement(task: Task, bounded: bool = False) -> Search:
    """The search until November 2026: 8 of the library, these in key, the flow's edits of the best up to 32, CMA-ES.

    `bounded`: with the distance of that time, from then on MSS counts more where it is over that of the best.
    """
    best, nearest, done, origin = None, np.inf, 0, "first"
    vectors = task.nearest(FIRST)
    while True:
        values = yield vectors
        done += len(vectors)
        if values.min() < nearest:
            best, nearest = vectors[values.argmin()], values.min()
        if done >= PROPOSED:
            break
        moved = _into_key(task, vectors) if origin == "first" else []
        origin, vectors = "moved", moved
        if not len(moved):
            origin, sound = "edit", log_mel(torch.from_numpy(task.render(best)))
            vectors = task.model.sample(task.mel, 1, (sound[None], best[None]), seed=task.seed + done)
    cents = _cents(task, best)
    if task.pitch and (cents is None or abs(cents) >= 50):  # its pitch may have been misheard
        tried = [_transpose(task, best, off) for off in range(-12, 13) if off]
        vectors = np.array([*_into_key(task, [best]), *(v for v in tried if v is not None)])
        values = yield vectors
        if values.min() < nearest:
            best = vectors[values.argmin()]
            cents = _cents(task, best)
    if bounded:
        task.distance = task.distance.bounded(task.distance.mss(task.render(best)[None])[0])
    held = _tuning(task, best) if cents is not None and abs(cents) < 50 else set()
    free = [p.name for p in task.space if p.kind != "categorical" and p.name not in held]
    centre = task.space.to_quantiles(best)
    yield from cma_es(task, centre, [task.space.columns[name].start for name in free], SIGMA)


class EarlierDistance(Distance):
    """What ranked until November 2026: MSS, SOT and RMS, and 0.01 for each cent out of tune, up to 1."""

    most = math.inf  # MSS

    def __init__(self, target: np.ndarray):
        super().__init__(target)
        self.pitch = find_pitch(target)

    def __call__(self, renders: np.ndarray) -> np.ndarray:
        values = super().__call__(renders)
        if self.pitch:
            found = [find_pitch(render) for render in renders]
            off = [1200 * abs(math.log2(p.hz / self.pitch.hz)) if p else math.inf for p in found]
            values += np.minimum(1.0, np.array(off) / 100)
        return values

    def _mss(self, clip: np.ndarray) -> float:
        mss = super()._mss(clip)
        return mss + STEEP * max(0.0, mss - self.most)

    def bounded(self, most: float) -> EarlierDistance:
        """The same with a bound of MSS."""
        other = copy.copy(self)
        other.most = most
        return other


def _nearest(task: Task) -> Generator[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Quantiles of the nearest, and their distances."""
    vectors = task.nearest(NEAREST)
    values = yield vectors
    return task.space.to_quantiles(vectors), values.copy()


def _scalars(task: Task) -> list[int]:
    return [task.space.columns[p.name].start for p in task.space if p.kind != "categorical"]


def _cents(task: Task, vector: np.ndarray) -> float | None:
    found = task.pitch and find_pitch(task.render(vector))
    return 1200 * math.log2(found.hz / task.pitch.hz) if found else None


def _into_key(task: Task, vectors: np.ndarray) -> np.ndarray:
    """Copies of those that sound a semitone or more off the target's key, transposed."""
    offs = [round((_cents(task, vector) or 0) / 100) for vector in vectors] if task.pitch else []
    moved = [_transpose(task, vector, -off) for vector, off in zip(vectors, offs) if off]
    return np.array([vector for vector in moved if vector is not None])


def _transpose(task: Task, vector: np.ndarray, semitones: int) -> np.ndarray | None:
    patch, note = task.space.decode(vector)
    pitch = int(np.clip(note.pitch + semitones, task.space["pitch"].low, task.space["pitch"].high))
    rest = note.pitch + semitones - pitch
    patch = task.matcher.synth.transpose(patch, rest) if rest else patch
    try:
        return patch and task.space.encode(patch, note._replace(pitch=pitch))
    except SpaceError:
        return None


def _tuning(task: Task, vector: np.ndarray) -> set[str]:
    """Names of what transposes a patch."""
    patch, _ = task.space.decode(vector)
    synth = task.matcher.synth
    moved = synth.transpose(patch, 1) or synth.transpose(patch, -1) or patch
    return {"pitch", *(name for name in patch if moved[name] != patch[name])}
