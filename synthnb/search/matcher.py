"""Match a sound: find patches that are near, let the flow edit them, refine the best, keep every result.

matcher = Matcher(load_model("dexed"))
match = matcher.match(prepare(read_sound("bass.wav")))
match.best.patch, match.best.distance
match.save("outputs/bass")
"""

from __future__ import annotations

import functools
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cma
import joblib
import numpy as np
import pandas as pd
import torch

from synthnb.features import log_mel
from synthnb.metrics import Distance, all_metrics
from synthnb.sound import SAMPLE_RATE, check_sound, write_sound
from synthnb.space import Note, ParameterSpace, Patch
from synthnb.synths import Synth, open_space, open_synth

if TYPE_CHECKING:  # workers import this module, and Lightning takes seconds
    from synthnb.models.flow import FlowModel

FIRST = 8  # candidates before the flow edits the best of them
EDITS = 1  # of the best so far, drawn, rendered and ranked before it goes on
FROM_NOISE = {"guidance": 3.0, "temperature": 0.6}  # how the flow is sampled without a source
SIGMA = 0.06  # of the first CMA-ES steps, in quantiles
POPULATION = 16
#: Peaks. The floor of spectrograms (power 1e-10) begins to hide the quiet cells of a sound that peaks under -40 dBFS,
#: up to 2.5 dB on average at -50 and 11 at -60, so such a sound is raised to -6.
QUIET, NORMAL = 0.01, 0.5


@dataclass(frozen=True)
class Candidate:
    """One patch that may have made the sound.

    Attributes:
        vector: float32 `(width,)`, what the space decodes into `patch` and `note`.
        distance: `Distance` to the target; 0 is the same sound, 1 about as far as an octave.
        origin: `library` (a training clip), `noise` or `edit` (the flow's, without and with a source), `refined`.
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
        target: float32 `(channels, samples)`, the sound as it was compared; a very quiet one is raised.
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

    @property
    def first(self) -> Candidate:
        """The nearest of those that were proposed: where refining began."""
        return next(c for c in self.candidates if c.origin != "refined")

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

    def differences(self, candidate: Candidate | None = None) -> pd.DataFrame:
        """Where a candidate (default: the best) departs from the synth's default patch, the farthest first.

        One row for each parameter that differs: `parameter`, `value`, `default`.
        """
        patch = (candidate or self.best).patch
        rows = []
        for p in self.space.parameters:
            if patch[p.name] != p.default:
                far = 1.0 if p.kind == "categorical" else abs(p.to_unit(patch[p.name]) - p.to_unit(p.default))
                rows.append((far, p.name, patch[p.name], p.default))
        rows = [row for _, *row in sorted(rows, key=lambda row: -row[0])]
        return pd.DataFrame(rows, columns=["parameter", "value", "default"])

    def save(
        self, folder: str | Path, name: str = "match", candidate: Candidate | None = None
    ) -> dict[str, Path]:
        """Write a candidate (default: the best): preset, target and match as wav at equal level, and `match.json`.

        `name` is the preset's; what a file name cannot hold becomes `_` there. Returns the paths by kind: `preset`,
        `target`, `match`, `report`.
        """
        chosen = candidate or self.best
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w.-]+", "_", name)[:60].strip("._-") or "match"
        paths = {
            "preset": folder / f"{stem}{self.synth.preset_suffix}",
            "target": folder / "target.wav",
            "match": folder / "match.wav",
            "report": folder / "match.json",
        }
        self.synth.save_preset(paths["preset"], chosen.patch, name)
        write_sound(paths["target"], self.target)
        write_sound(paths["match"], self.audio(chosen))
        seconds, renders, _ = self.history[-1]
        report = {
            "distance": round(chosen.distance, 4),
            "distances": {key: round(value, 4) for key, value in self.metrics(chosen).items()},
            "first": round(self.first.distance, 4),
            "renders": renders,
            "seconds": round(seconds, 1),
            "synth": self.space.synth,
            "space": self.space.name,
            "preset": paths["preset"].name,
            "note": chosen.note._asdict(),
            "patch": chosen.patch,
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
        self.synth = open_synth(self.space)
        self.workers = joblib.cpu_count() if workers == -1 else workers
        self._task: tuple[str, Distance | None] = ("", None)  # the target that the workers know by that token

    def prepare_target(self, audio: np.ndarray) -> np.ndarray:
        """A sound `(channels, samples)` as the synth could make it: its channels and exactly the space's length.

        Its level is left alone, unless it peaks under -40 dBFS: then it is raised to -6, as spectrograms have a floor.
        Raises `UnusableSound`, or `ValueError` if the length is wrong (see `sound.prepare`).
        """
        check_sound(audio)
        audio = np.asarray(audio, dtype=np.float32)
        samples = round(self.space.seconds * SAMPLE_RATE)
        if audio.shape[1] != samples:
            raise ValueError(
                f"the sound has {audio.shape[1]} samples, {samples} are needed; use sound.prepare first"
            )
        if self.synth.channels == 1:
            audio = audio.mean(axis=0, keepdims=True)
            check_sound(audio, "this sound, mixed to mono")  # two channels may cancel out
        elif len(audio) == 1:
            audio = np.repeat(audio, 2, axis=0)
        peak = np.abs(audio).max()
        return audio * (NORMAL / peak) if peak < QUIET else audio

    def start(self, target: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
        """Vectors `(count, width)` to begin with: the nearest of the model's library; without one, the flow's."""
        mel = log_mel(torch.from_numpy(target))
        if self.model.library is not None:
            return self.model.library.nearest(mel, count)
        return self.model.sample(mel, count, seed=seed, **FROM_NOISE)

    def edit(
        self, target: np.ndarray, vector: np.ndarray, count: int, seed: int = 0, **sampling
    ) -> np.ndarray:
        """`count` edits `(count, width)` of a patch that the flow draws; `sampling` goes to `FlowModel.sample`."""
        audio = self.synth.render(*self.space.decode(vector), self.space.seconds)[: len(target)]
        mel, source = log_mel(torch.from_numpy(np.stack([target, audio])))
        return self.model.sample(mel, count, (source[None], vector[None]), seed=seed, **sampling)

    def propose(
        self,
        target: np.ndarray,
        distance: Distance,
        count: int = 32,
        seed: int = 0,
        edit: Callable[..., np.ndarray] | None = None,
        **sampling,
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """`count` candidates: a few to begin with, then edits of the best so far, again and again.

        Args:
            edit: called with target, vector, count and seed; by default it is the flow that edits.
            sampling: to `FlowModel.sample`.

        Yields:
            Origin, vectors `(n, width)` and their distances `(n,)`.
        """
        edit = edit or functools.partial(self.edit, **sampling)
        vectors = self.start(target, min(FIRST, count), seed)
        values = self.distances(distance, vectors)
        yield "noise" if self.model.library is None else "library", vectors, values
        best, nearest, done = vectors[values.argmin()], values.min(), len(vectors)
        while done < count:
            vectors = edit(target, best, min(EDITS, count - done), seed + done)
            values = self.distances(distance, vectors)
            yield "edit", vectors, values
            done += len(vectors)
            if values.min() < nearest:
                best, nearest = vectors[values.argmin()], values.min()

    def distances(self, target: Distance, vectors: np.ndarray) -> np.ndarray:
        """Render vectors `(n, width)` and measure them: float64 `(n,)`."""
        if self.workers == 1 or len(vectors) == 1:
            return score(self.space, self.synth, target, vectors)
        if self._task[1] is not target:
            self._task = (uuid.uuid4().hex, target)
        token, parts = self._task[0], np.array_split(vectors, min(self.workers, len(vectors)))
        # A target takes 3 MB, so it travels only to workers that do not know it yet.
        values = self._run(_score_in_worker, [(token, part) for part in parts])
        unknown = [i for i, found in enumerate(values) if found is None]
        again = [(token, parts[i], self.space.text, target) for i in unknown]
        for i, found in zip(unknown, self._run(_score_in_worker, again)):
            values[i] = found
        return np.concatenate(values)

    def _run(self, function: Callable, arguments: list[tuple]) -> list:
        """In the worker processes, which joblib keeps from one call to the next."""
        return joblib.Parallel(n_jobs=self.workers)(joblib.delayed(function)(*each) for each in arguments)

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
            candidates: found, and edited by the flow.
            seconds: time for refining the best of them; 0 keeps them as they are.
            progress: called with the match so far after every step.
            sampling: `steps`, `guidance`, `interval`, `midpoint` of `FlowModel.sample`.

        Returns:
            The match. An interrupt (Ctrl-C, *interrupt kernel*, `KeyboardInterrupt` raised by `progress`) ends the
            search early and keeps what was found; it passes through only before the first candidates are ranked.
        """
        start = time.perf_counter()
        target = self.prepare_target(audio)
        distance = Distance(target)
        match = Match(target, self.space, self.synth)
        renders = 0

        def step(count: int) -> None:
            nonlocal renders
            renders += count
            match.history.append((time.perf_counter() - start, renders, match.best.distance))
            if progress:
                progress(match)

        try:
            for origin, vectors, values in self.propose(target, distance, candidates, seed, **sampling):
                found = [self._candidate(v, d, origin) for v, d in zip(vectors, values)]
                match.candidates = sorted([*match.candidates, *found], key=lambda c: c.distance)
                step(len(vectors))
            deadline = time.perf_counter() + seconds
            for vectors, values in self.refine(distance, match.best.vector, deadline, seed):
                nearest = int(np.argmin(values))
                if values[nearest] < match.best.distance:
                    refined = self._candidate(vectors[nearest], values[nearest], "refined")
                    match.candidates = [refined] + [c for c in match.candidates if c.origin != "refined"]
                step(len(vectors))
        except KeyboardInterrupt:
            if not match.candidates:
                raise
        return match

    def refine(
        self, target: Distance, vector: np.ndarray, deadline: float, seed: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """CMA-ES (Hansen's `cma`, diagonal) on the scalar parameters around `vector`, until `deadline`.

        It moves in quantiles, where every parameter has the same scale; categories stay. Yields every population,
        vectors `(n, width)` and distances `(n,)`.
        """
        columns = [self.space.columns[p.name].start for p in self.space if p.kind != "categorical"]
        centre, rng = self.space.to_quantiles(vector), np.random.default_rng(seed)
        options = {
            "bounds": [0, 1],
            "popsize": POPULATION,
            "CMA_diagonal": True,
            "seed": np.nan,  # leave NumPy's global generator alone
            "randn": lambda *shape: rng.standard_normal(shape),
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


_tasks: dict[str, tuple[ParameterSpace, Synth, Distance]] = {}  # in a worker: the targets it knows, by token


def _score_in_worker(
    token: str, vectors: np.ndarray, text: str = "", target: Distance | None = None
) -> np.ndarray | None:
    """`score`, or None if this worker does not know the target of that token and is not told."""
    if token not in _tasks:
        if target is None:
            return None
        torch.set_num_threads(1)
        while len(_tasks) >= 4:
            del _tasks[next(iter(_tasks))]
        _tasks[token] = (*open_space(text), target)
    return score(*_tasks[token], vectors)
