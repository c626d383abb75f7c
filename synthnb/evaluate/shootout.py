"""Searches against each other: the same sounds, the same ranking distance, equal renders or equal seconds.

A method is called with a matcher, a sound, a budget and a seed, and says after every step how far it is. Baselines are
generators (`baselines.py`) that `asked` drives; ours are `Matcher.match` with other settings. What a method found by
each checkpoint is rendered again and measured when it has ended, so measuring costs it no time. Results are kept, one
file for each sound and method, with what they depend on.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from synthnb.evaluate import baselines
from synthnb.evaluate.baselines import EarlierDistance, Search, Task
from synthnb.evaluate.heard import heard
from synthnb.evaluate.targets import Target
from synthnb.metrics import Distance, all_metrics
from synthnb.models.checkpoint import checkpoint_path, load_model
from synthnb.search.distance import HeardDistance
from synthnb.search.match import Match, gain
from synthnb.search.matcher import Matcher
from synthnb.search.moves import MOVES

Ranking = HeardDistance  # of all methods, but the one that had another
RENDERS = (10, 32, 100, 300, 1000, 3000, 10_000)
SECONDS = (1, 3, 10, 30, 60, 120)
SHARED = ("evaluate/baselines.py", "evaluate/heard.py", "evaluate/shootout.py", "features/*.py", "metrics.py",
          "models/**/*.py", "pitch.py", "search/distance.py", "search/hearing.py")  # fmt: skip
OURS = (*SHARED, "search/*.py")  # the code that decides what our searches find


class Budget(NamedTuple):
    """How many `renders`, or how many `seconds` of all cores, a search may take: one of the two is given."""

    renders: int | None = None
    seconds: float | None = None

    @property
    def unit(self) -> str:
        return "renders" if self.seconds is None else "seconds"

    @property
    def checkpoints(self) -> tuple[float, ...]:
        """Where a search is looked at: the last of them is its end."""
        end = self.renders if self.seconds is None else self.seconds
        return (*(at for at in (RENDERS if self.seconds is None else SECONDS) if at < end), end)


class Step(NamedTuple):
    """After how many seconds and renders a search had which vector as its best, at what distance."""

    seconds: float
    renders: int
    distance: float
    vector: np.ndarray


class Method(NamedTuple):
    """How a search is run, `(matcher, audio, budget, seed) -> steps`, and the code that decides what it finds."""

    run: Callable[[Matcher, np.ndarray, Budget, int], list[Step]]
    code: tuple[str, ...]


def asked(search: Callable[[Task], Search], ranking: Callable[[np.ndarray], Distance] = Ranking) -> Method:
    """A baseline, driven: it is asked for vectors and told their distances until the budget is used up.

    Of the last batch only so many are played as there are renders left.
    """

    def run(matcher: Matcher, audio: np.ndarray, budget: Budget, seed: int) -> list[Step]:
        start, steps, done, best = time.perf_counter(), [], 0, (np.inf, None)
        task = Task(matcher, audio, ranking, seed)
        asking = search(task)
        vectors = next(asking)
        while True:
            if budget.renders is not None:
                vectors = vectors[: budget.renders - done]
            values = task.score(vectors)
            seconds = time.perf_counter() - start
            for value, vector in zip(values, vectors):
                done += 1
                best = min(best, (value, vector), key=lambda found: found[0])
                steps.append(Step(seconds, done, *best))
            if done == budget.renders or (budget.seconds is not None and seconds >= budget.seconds):
                return steps
            try:
                vectors = asking.send(values)
            except StopIteration:  # it has converged
                return steps

    return Method(run, SHARED)


def matched(**settings) -> Method:
    """Our search, with these settings of `Matcher.match`."""

    def run(matcher: Matcher, audio: np.ndarray, budget: Budget, seed: int) -> list[Step]:
        steps = []

        def look(match: Match) -> None:
            steps.append(Step(*match.history[-1], match.best.vector))

        limits = {key: value for key, value in budget._asdict().items() if value is not None}
        matcher.match(audio, seed=seed, progress=look, **limits, **settings)
        return steps

    return Method(run, OURS)


OUR, TODAY, EARLIER = "ours", "today's refinement", "today's, its own distance"
BASELINES = {
    "CMA-ES from the mean": asked(baselines.cma_from_mean),
    "CMA-ES from the nearest": asked(baselines.cma_from_nearest),
    "DE from the nearest": asked(baselines.differential_evolution),
    "GA from the nearest": asked(baselines.genetic_algorithm),
    "CatCMA from the nearest": asked(baselines.catcma),
    "random search": asked(baselines.random_search),
}
if not importlib.util.find_spec("cmaes"):
    del BASELINES["CatCMA from the nearest"]
ALONE = {f"only {move}": matched(moves=[move]) for move in MOVES}
LEFT_OUT = {f"without {move}": matched(moves=[other for other in MOVES if other != move]) for move in MOVES}
METHODS = {
    OUR: matched(),
    TODAY: asked(baselines.refinement),
    EARLIER: asked(functools.partial(baselines.refinement, bounded=True), EarlierDistance),
    **BASELINES,
    **ALONE,
    **LEFT_OUT,
}


def shootout(
    checkpoint: str | Path,
    targets: Mapping[str, Sequence[Target]],
    methods: Collection[str],
    out: str | Path,
    budget: Budget,
    seed: int = 0,
    workers: int = -1,
) -> pd.DataFrame:
    """Have every method search for every sound.

    With a budget of renders, sounds and methods go side by side, one core each; with a budget of seconds one after the
    other, and each has all the cores.

    Args:
        checkpoint: of the model, as `load_model` takes it.
        targets: sounds by their kind.
        methods: names in `METHODS`.
        out: where results are kept.
        workers: cores; -1 takes all.

    Returns:
        A row for each sound, method and checkpoint: `kind`, `target`, `method`, `unit` of the budget, `at`; of the best
        by then `renders` and `seconds` that it took, `distance`, `MSS`, and `cents`, `tail` and `attack` (see `Heard`).
        In the row at the end also the other `METRICS`, and `first`, the seconds after which there was any result.

    Raises:
        KeyError: a method that isn't known.
    """
    out, jobs, kept = Path(out), [], []
    out.mkdir(parents=True, exist_ok=True)
    model = _digest(checkpoint_path(checkpoint).read_bytes())
    for kind, sounds in targets.items():
        for target in sounds:
            for name in methods:
                sound = _digest(target.audio.tobytes())
                key = {
                    "model": model,
                    "code": code_digest(METHODS[name].code),
                    "sound": sound,
                    "seed": seed,
                    "budget": list(budget),
                    "cores": 1 if budget.seconds is None else _cores(workers),
                }
                path = out / f"{sound}-{re.sub(r'[^a-z]+', '-', name.lower())}-{budget.unit}.json"
                kept.append((kind, target.name, name, path))
                if not path.is_file() or json.loads(path.read_text())["key"] != key:
                    jobs.append((checkpoint, target, name, path, key, budget))
    side_by_side = workers if budget.seconds is None else 1
    pool = joblib.Parallel(side_by_side, return_as="generator_unordered", batch_size=1, max_nbytes=None)
    work = pool(joblib.delayed(_search)(*job, side_by_side != 1) for job in jobs)
    for _ in tqdm(work, total=len(jobs), unit="search", mininterval=10, disable=not jobs):
        pass
    rows = [
        {"kind": kind, "target": target, "method": name, "unit": budget.unit, **row}
        for kind, target, name, path in kept
        for row in json.loads(path.read_text())["rows"]
    ]
    return pd.DataFrame(rows)


def first_result(checkpoint: str | Path, audio: np.ndarray, seconds: float, workers: int = -1) -> float:
    """Seconds from the call of `Matcher.match` until there is anything to hear; the search then goes on."""
    matcher = Matcher(load_model(checkpoint, "cpu"), workers)
    return METHODS[OUR].run(matcher, audio, Budget(seconds=seconds), 0)[0].seconds


@functools.cache
def code_digest(patterns: tuple[str, ...], root: Path = Path(__file__).parents[1]) -> str:
    """What changes with the code in these files; comments and layout do not count."""
    files = [file for pattern in patterns for file in sorted(root.glob(pattern))]
    return _digest("\n".join(ast.dump(ast.parse(file.read_bytes())) for file in files).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _cores(workers: int) -> int:
    return joblib.cpu_count() if workers == -1 else workers


@functools.lru_cache(maxsize=1)
def _matcher(checkpoint: str | Path, model: str, cores: int) -> Matcher:
    """Open in this process until another is asked for, and warm: what starts slowly has started."""
    matcher = Matcher(load_model(checkpoint, "cpu"), cores)
    rng = np.random.default_rng(0)
    vectors = np.stack([matcher.space.encode(*matcher.space.sample(rng)) for _ in range(4 * cores)])
    noise = rng.standard_normal((1, round(matcher.space.seconds * 44_100))).astype(np.float32)
    Task(matcher, noise, Ranking, 0).score(vectors)
    return matcher


def _search(
    checkpoint: str | Path, target: Target, name: str, path: Path, key: dict, budget: Budget, in_worker: bool
) -> None:
    if in_worker:
        torch.set_num_threads(1)
    matcher = _matcher(checkpoint, key["model"], key["cores"])
    steps = METHODS[name].run(matcher, target.audio, budget, key["seed"])
    rows = _measured(matcher, target, steps, budget)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps({"key": key, "rows": rows, "vector": steps[-1].vector.tolist()}))
    aside.replace(path)


def _measured(matcher: Matcher, target: Target, steps: list[Step], budget: Budget) -> list[dict]:
    """The rows of one search."""
    task = Task(matcher, target.audio, Ranking, 0)
    rows, known = [], {}
    for at in budget.checkpoints:
        reached = [step for step in steps if getattr(step, budget.unit) <= at]
        if not reached:
            continue
        step = reached[-1]
        if step.vector.tobytes() not in known:
            audio = task.render(step.vector)
            known[step.vector.tobytes()] = {
                "distance": float(task.distance(audio[None])[0]),
                "MSS": float(task.distance.mss(audio[None])[0]),
                **heard(task.target, audio)._asdict(),
            }
        rows.append(
            {"at": at, "seconds": step.seconds, "renders": step.renders} | known[step.vector.tobytes()]
        )
    audio = task.render(reached[-1].vector)
    level = gain(task.target, audio) if target.recorded else 1.0
    rows[-1] |= all_metrics(task.target, audio * level) | {"first": steps[0].seconds}
    return rows
