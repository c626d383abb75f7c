"""The search and the distance until November 2026, kept to compare with."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch

from synthnb.evaluate.baselines import SIGMA, Search, Task, cma_es
from synthnb.features import log_mel
from synthnb.metrics import Distance
from synthnb.pitch import find_pitch
from synthnb.space import SpaceError

FIRST, PROPOSED = 8, 32  # library clips, and all before CMA-ES
STEEP = 6  # how often MSS over the bound counts, beside the once that all of it counts


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
            origin, sound = "edit", log_mel(torch.from_numpy(task.heard(best)))
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
        task.distance = task.distance.bounded(task.distance.mss(task.heard(best)[None])[0])
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


def _cents(task: Task, vector: np.ndarray) -> float | None:
    found = task.pitch and find_pitch(task.heard(vector))
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
