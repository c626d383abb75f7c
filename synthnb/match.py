"""Match a sound: propose patches with the flow, render and rank them, refine the best, keep every result.

matcher = Matcher(load_model("dexed"))
match = matcher.match(prepare(read_sound("bass.wav")))
match.best.patch, match.best.distance
match.save("outputs/bass")
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cma
import joblib
import numpy as np
import pandas as pd
import torch

from synthnb.features import log_mel
from synthnb.metrics import Distance, all_metrics
from synthnb.models.flow import FlowModel
from synthnb.sound import SAMPLE_RATE, check_sound, write_sound
from synthnb.space import Note, ParameterSpace, Patch
from synthnb.synths import Synth, open_synth

SIGMA = 0.06  # of the first CMA-ES steps, in quantiles
POPULATION = 16


@dataclass(frozen=True)
class Candidate:
    """One patch that may have made the sound.

    Attributes:
        vector: float32 `(width,)`, what the space decodes into `patch` and `note`.
        distance: `Distance` to the target; 0 is the same sound, 1 about as far as an octave.
        origin: `flow`, or `refined`.
    """

    vector: np.ndarray
    patch: Patch
    note: Note
    distance: float
    origin: str


@dataclass
class Match:
    """What a search found: all candidates, the best first, and how it went.

    Attributes:
        target: float32 `(channels, samples)`, the sound as it was compared.
        history: `(seconds, renders, best distance)` after every step.
    """

    target: np.ndarray
    space: ParameterSpace
    synth: Synth = field(repr=False)
    candidates: list[Candidate] = field(default_factory=list)
    history: list[tuple[float, int, float]] = field(default_factory=list)

    @property
    def best(self) -> Candidate:
        """The candidate nearest to the target."""
        return self.candidates[0]

    def audio(self, candidate: Candidate | None = None, level: bool = True) -> np.ndarray:
        """A candidate's render (default: the best's), `(channels, samples)`; `level` scales it to the target's RMS."""
        chosen = candidate or self.best
        render = self.synth.render(chosen.patch, chosen.note, self.space.seconds)[: len(self.target)]
        return render * gain(self.target, render) if level else render

    def metrics(self, candidate: Candidate | None = None) -> dict[str, float]:
        """MSS, wMFCC, SOT and RMS of a candidate (default: the best), at the target's level."""
        return all_metrics(self.target, self.audio(candidate))

    def table(self, count: int = 8) -> pd.DataFrame:
        """The best `count` candidates: origin, distance, note and metrics, one row each."""
        rows = [
            {"origin": c.origin, "distance": c.distance, "pitch": c.note.pitch, **self.metrics(c)}
            for c in self.candidates[:count]
        ]
        return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="rank"))

    def save(self, folder: str | Path, name: str = "match") -> dict[str, Path]:
        """Write the preset, target and match as wav (at equal level), and `match.json`. Returns the paths by kind."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w.-]+", "_", name) or "match"
        paths = {
            "preset": self.synth.save_preset(
                folder / f"{stem}{self.synth.preset_suffix}", self.best.patch, name
            ),
            "target": folder / "target.wav",
            "match": folder / "match.wav",
            "report": folder / "match.json",
        }
        write_sound(paths["target"], self.target)
        write_sound(paths["match"], self.audio())
        seconds, renders, _ = self.history[-1]
        report = {
            "distance": round(self.best.distance, 4),
            "distances": {key: round(value, 4) for key, value in self.metrics().items()},
            "first": round(self.history[0][2], 4),
            "renders": renders,
            "seconds": round(seconds, 1),
            "synth": self.space.synth,
            "space": self.space.name,
            "preset": paths["preset"].name,
            "note": self.best.note._asdict(),
            "patch": self.best.patch,
        }
        paths["report"].write_text(json.dumps(report, indent=1) + "\n")
        return paths


def gain(target: np.ndarray, render: np.ndarray) -> float:
    """The factor that brings `render` to the RMS of `target`; 1 if either is silent."""
    target_rms, render_rms = (
        float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (target, render)
    )
    return target_rms / render_rms if target_rms > 0 and render_rms > 0 else 1.0


class Matcher:
    """Finds patches for sounds with one model and its synth.

    Args:
        model: from `load_model`.
        workers: processes that render, each with its own synth; -1 takes all cores, 1 stays in this process.
    """

    def __init__(self, model: FlowModel, workers: int = -1):
        self.model, self.space = model, model.space
        self.synth = open_synth(self.space.synth)
        self.workers = joblib.cpu_count() if workers == -1 else workers

    def prepare_target(self, audio: np.ndarray) -> np.ndarray:
        """A sound `(channels, samples)` as the synth could make it: its channels and exactly the space's length.

        Raises `UnusableSound`, or `ValueError` if the length is wrong (see `sound.prepare`).
        """
        check_sound(audio)
        samples = round(self.space.seconds * SAMPLE_RATE)
        if audio.shape[1] != samples:
            raise ValueError(
                f"the sound has {audio.shape[1]} samples, {samples} are needed; use sound.prepare first"
            )
        if self.synth.channels == 1:
            return audio.mean(axis=0, keepdims=True, dtype=np.float32)
        return np.repeat(audio, 2, axis=0) if len(audio) == 1 else audio

    def propose(self, target: np.ndarray, count: int = 32, seed: int = 0, **sampling) -> np.ndarray:
        """`count` vectors `(count, width)` drawn from the flow; `sampling` goes to `FlowModel.sample`."""
        return self.model.sample(log_mel(torch.from_numpy(target)), count, seed=seed, **sampling)

    def distances(self, target: Distance, vectors: np.ndarray) -> np.ndarray:
        """Render vectors `(n, width)` and measure them: float64 `(n,)`."""
        if self.workers == 1:
            return score(self.space, self.synth, target, vectors)
        parts = np.array_split(vectors, min(self.workers, len(vectors)))
        pool = joblib.Parallel(n_jobs=self.workers)
        return np.concatenate(
            pool(joblib.delayed(_score_in_worker)(self.space.text, target, part) for part in parts)
        )

    def match(
        self,
        audio: np.ndarray,
        candidates: int = 32,
        seconds: float = 30.0,
        seed: int = 0,
        progress: Callable[[Match], None] | None = None,
        **sampling,
    ) -> Match:
        """Search for patches that sound like `audio`.

        Args:
            audio: float32 `(channels, samples)`, as `sound.prepare` gives it.
            candidates: drawn from the flow.
            seconds: time for refining the best of them; 0 keeps them as they are.
            progress: called with the match so far after every step.
            sampling: `steps`, `guidance`, `interval`, `midpoint` of `FlowModel.sample`.

        Returns:
            The match; an interrupt (Ctrl-C, *interrupt kernel*) ends the search early and keeps what was found.
        """
        start = time.perf_counter()
        target = self.prepare_target(audio)
        distance = Distance(target)
        match = Match(target, self.space, self.synth)
        vectors = self.propose(target, candidates, seed, **sampling)
        found = [self._candidate(v, d, "flow") for v, d in zip(vectors, self.distances(distance, vectors))]
        match.candidates = sorted(found, key=lambda c: c.distance)
        match.history.append((time.perf_counter() - start, candidates, match.best.distance))
        if progress:
            progress(match)
        deadline, renders = time.perf_counter() + seconds, candidates
        try:
            for vectors, values in self.refine(distance, match.best.vector, deadline, seed):
                renders += len(vectors)
                nearest = int(np.argmin(values))
                if values[nearest] < match.best.distance:
                    refined = self._candidate(vectors[nearest], values[nearest], "refined")
                    match.candidates = [refined] + [c for c in match.candidates if c.origin == "flow"]
                match.history.append((time.perf_counter() - start, renders, match.best.distance))
                if progress:
                    progress(match)
        except KeyboardInterrupt:
            pass
        return match

    def refine(
        self, target: Distance, vector: np.ndarray, deadline: float, seed: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """CMA-ES (Hansen's `cma`, diagonal) on the scalar parameters around `vector`, until `deadline`.

        It moves in quantiles, where every parameter has the same scale; categories stay. Yields every population,
        vectors `(n, width)` and distances `(n,)`.
        """
        columns = [self.space.columns[p.name].start for p in self.space if p.kind != "categorical"]
        centre = self.space.to_quantiles(vector)
        options = {
            "bounds": [0, 1],
            "popsize": POPULATION,
            "CMA_diagonal": True,
            "seed": seed + 1,  # 0 would mean the clock
            "verbose": -9,
        }
        search = cma.CMAEvolutionStrategy(centre[columns].astype(float), SIGMA, options)
        while time.perf_counter() < deadline and not search.stop():
            points = search.ask()
            quantiles = np.repeat(centre[None], len(points), axis=0)
            quantiles[:, columns] = points
            vectors = self.space.from_quantiles(quantiles)
            values = self.distances(target, vectors)
            search.tell(points, values.tolist())
            yield vectors, values

    def _candidate(self, vector: np.ndarray, distance: float, origin: str) -> Candidate:
        return Candidate(vector, *self.space.decode(vector), float(distance), origin)


def score(space: ParameterSpace, synth: Synth, target: Distance, vectors: np.ndarray) -> np.ndarray:
    """Render vectors `(n, width)` and give their distances `(n,)` to `target`."""
    values = []
    for vector in vectors:
        patch, note = space.decode(vector)
        values.append(target(synth.render(patch, note, space.seconds)[None, : synth.channels])[0])
    return np.array(values)


_opened: dict[str, tuple[ParameterSpace, Synth]] = {}  # in a worker: the space and synth it has open


def _score_in_worker(text: str, target: Distance, vectors: np.ndarray) -> np.ndarray:
    if text not in _opened:
        torch.set_num_threads(1)
        space = ParameterSpace.parse(text)
        _opened[text] = (space, open_synth(space.synth))
    return score(*_opened[text], target, vectors)
