"""Match a sound: find patches that are near, let the flow edit them, bring them into key, refine the best.

matcher = Matcher(load_model("dexed"))
match = matcher.match(prepare(read_sound("bass.wav")))
match.best.patch, match.best.distance, match.how_to_play()
match.save("outputs/bass")
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import cma
import joblib
import numpy as np
import torch

from synthnb.features import log_mel
from synthnb.metrics import Distance
from synthnb.search.distance import TunedDistance, out_of_tune
from synthnb.search.match import Candidate, Match, at_key
from synthnb.sound import SAMPLE_RATE, check_sound
from synthnb.space import ParameterSpace, SpaceError
from synthnb.synths import Synth, open_space, open_synth

if TYPE_CHECKING:  # workers import this module, and Lightning takes seconds
    from synthnb.models.flow import FlowModel

FIRST = 8  # candidates before the flow edits the best of them
EDITS = 1  # of the best so far, drawn, rendered and ranked before it goes on
FROM_NOISE = {"guidance": 3.0, "temperature": 0.6}  # how the flow is sampled without a source
SIGMA = 0.06  # of the first CMA-ES steps, in quantiles
POPULATION = 16
REMEMBERED = 32  # renders
#: Peaks. The floor of spectrograms (power 1e-10) begins to hide the quiet cells of a sound that peaks under -40 dBFS,
#: up to 2.5 dB on average at -50 and 11 at -60, so such a sound is raised to -6.
QUIET, NORMAL = 0.01, 0.5


class Matcher:
    """Finds patches for sounds with one model and its synth.

    Args:
        model: from `load_model`, on any device; renders and distances stay on the CPU.
        workers: processes that render, each with its own synth; -1 takes all cores, 1 stays in this process.
    """

    def __init__(self, model: FlowModel, workers: int = -1):
        if workers < 1 and workers != -1:
            raise ValueError(f"workers is {workers}; give 1 or more, or -1 for all cores")
        self.model, self.space = model, model.space
        self.synth = open_synth(self.space)
        self.workers = joblib.cpu_count() if workers == -1 else workers
        self._task: tuple[str, Distance | None] = ("", None)  # the target that the workers know by that token
        # By a vector's bytes: with random phases a sound never comes twice, and the source of many edits is one.
        self._sound = functools.lru_cache(REMEMBERED)(self._render)
        self._mel = functools.lru_cache(1)(lambda *of: log_mel(torch.from_numpy(self._sound(*of))))

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

    def start(self, mel: torch.Tensor, count: int, seed: int = 0) -> np.ndarray:
        """Vectors `(count, width)` to begin with: the nearest of the model's library; without one, the flow's."""
        if self.model.library is not None:
            return self.model.library.nearest(mel, count)
        return self.model.sample(mel, count, seed=seed, **FROM_NOISE)

    def edit(
        self, mel: torch.Tensor, vector: np.ndarray, count: int, seed: int, key: int | None = None, **sampling
    ) -> np.ndarray:
        """`count` edits `(count, width)` of a patch that the flow draws; `sampling` goes to `FlowModel.sample`."""
        source = self._mel(vector.tobytes(), key)
        return self.model.sample(mel, count, (source[None], vector[None]), seed=seed, **sampling)

    def propose(
        self,
        target: np.ndarray,
        distance: Distance,
        count: int = 32,
        seed: int = 0,
        edit: Callable[..., np.ndarray] | None = None,
        key: int | None = None,
        **sampling,
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """`count` candidates: a few to begin with, these moved into key, then edits of the best so far, on and on.

        Args:
            edit: called with the target's `log_mel`, vector, count and seed; by default it is the flow that edits.
            key: that all are played with, see `at_key`; None leaves each its own.
            sampling: to `FlowModel.sample`.

        Yields:
            Origin, vectors `(n, width)` and their distances `(n,)`.
        """
        edit = edit or functools.partial(self.edit, key=key, **sampling)
        mel = log_mel(torch.from_numpy(target))
        origin = first = "noise" if self.model.library is None else "library"
        vectors = self.start(mel, min(FIRST, count), seed)
        best, nearest, done = vectors[0], np.inf, 0
        while True:
            values = self.distances(distance, vectors, key)
            yield origin, vectors, values
            done += len(vectors)
            if values.min() < nearest:
                best, nearest = vectors[values.argmin()], values.min()
            if done >= count:
                return
            moved = [] if key is None or origin != first else self.moves(vectors, distance)[: count - done]
            if len(moved):
                origin, vectors = "moved", moved
            else:
                origin, vectors = "edit", edit(mel, best, min(EDITS, count - done), seed + done)

    def moves(self, vectors: Iterable[np.ndarray], target: TunedDistance) -> np.ndarray:
        """Copies `(n, width)`, transposed to the target's key, of those that sound a semitone or more off it."""
        moved = []
        for vector in vectors:
            off = round((target.cents(self._sound(vector.tobytes(), target.pitch.key)) or 0) / 100)
            moved += [self.transpose(vector, -off)] if off else []
        return np.array([vector for vector in moved if vector is not None])

    def transpose(self, vector: np.ndarray, semitones: int) -> np.ndarray | None:
        """A vector that sounds so much higher, by its note as far as that goes; None if the patch doesn't reach."""
        patch, note = self.space.decode(vector)
        pitch = int(np.clip(note.pitch + semitones, self.space["pitch"].low, self.space["pitch"].high))
        rest = note.pitch + semitones - pitch
        patch = self.synth.transpose(patch, rest) if rest else patch
        try:
            return patch and self.space.encode(patch, note._replace(pitch=pitch))
        except SpaceError:
            return None

    def _tuning(self, vector: np.ndarray) -> set[str]:
        """Names of what transposes a patch: the note's pitch, and what the synth changes for a semitone."""
        patch, _ = self.space.decode(vector)
        moved = self.synth.transpose(patch, 1) or self.synth.transpose(patch, -1) or patch
        return {"pitch", *(name for name in patch if moved[name] != patch[name])}

    def distances(self, target: Distance, vectors: np.ndarray, key: int | None = None) -> np.ndarray:
        """Render vectors `(n, width)` and measure them: float64 `(n,)`."""
        if self.workers == 1 or len(vectors) == 1:
            return np.array([target(self._sound(vector.tobytes(), key)[None])[0] for vector in vectors])
        if self._task[1] is not target:
            self._task = (uuid.uuid4().hex, target)
        token, parts = self._task[0], np.array_split(vectors, min(self.workers, len(vectors)))
        # A target takes 3 MB, so it travels only to workers that do not know it yet.
        values = self._run(_score_in_worker, [(token, part, key) for part in parts])
        unknown = [i for i, found in enumerate(values) if found is None]
        again = [(token, parts[i], key, self.space.text, target) for i in unknown]
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
        renders: int | None = None,
        seed: int = 0,
        progress: Callable[[Match], None] | None = None,
        **sampling,
    ) -> Match:
        """Search for patches that sound like `audio`, played with the key that was recorded.

        Args:
            audio: float32 `(channels, samples)`, as `sound.prepare` gives it.
            candidates: found, and edited by the flow.
            seconds: time for refining the best of them; 0 keeps them as they are.
            renders: how many for refining instead of `seconds`; so the result is the same on a busy machine.
            progress: called with the match so far after every step.
            sampling: `steps`, `guidance`, `interval`, `midpoint` of `FlowModel.sample`.

        Returns:
            The match. An interrupt (Ctrl-C, *interrupt kernel*, `KeyboardInterrupt` raised by `progress`) ends the
            search early and keeps what was found; it passes through only before the first candidates are ranked.
        """
        if candidates < 1 or seed < 0:
            raise ValueError(f"candidates is {candidates} and seed {seed}; give 1 or more and 0 or more")
        start = time.perf_counter()
        target = self.prepare_target(audio)
        distance = TunedDistance(target)
        match, done = Match(target, self.space, self.synth, distance.pitch), 0

        def step(count: int) -> None:
            nonlocal done
            done += count
            match.history.append((time.perf_counter() - start, done, match.best.distance))
            if progress:
                progress(match)

        def found(vector: np.ndarray, origin: str) -> Candidate:
            # What a worker rendered is rendered again, and ranked by that: with random phases no two are the same.
            audio, played = self._sound(vector.tobytes(), match.key), self.space.decode(vector)
            patch, note = at_key(self.synth, *played, match.key)
            value = float(distance(audio[None])[0])
            return Candidate(vector, patch, note, audio, value, distance.cents(audio), origin)

        try:
            for origin, vectors, _ in self.propose(
                target, distance, candidates, seed, key=match.key, **sampling
            ):
                match.add(found(vector, origin) for vector in vectors)
                step(len(vectors))
            nearest = min(match.candidates, key=lambda c: c.distance - out_of_tune(c.cents))
            if match.pitch and out_of_tune(nearest.cents) >= 0.5:
                # Its pitch may have been misheard, so every key within an octave is tried too.
                tried = [self.transpose(nearest.vector, off) for off in range(-12, 13) if off]
                vectors = [*self.moves([nearest.vector], distance), *(v for v in tried if v is not None)]
                match.add(found(vector, "moved") for vector in vectors)
                step(len(vectors))
            since, most = time.perf_counter(), distance.mss(match.best.audio[None])[0]
            bounded = distance.bounded(most)
            held = self._tuning(match.best.vector) if match.pitch and out_of_tune(match.cents()) < 0.5 else ()
            for vectors, values in self.refine(
                bounded, match.best.vector, seconds, renders, seed, match.key, held
            ):
                match.refining = time.perf_counter() - since
                if values.min() < match.best.distance:
                    better = found(vectors[values.argmin()], "refined")
                    if better.distance < match.best.distance and distance.mss(better.audio[None])[0] <= most:
                        match.candidates = [better, *(c for c in match.candidates if c.origin != "refined")]
                step(len(vectors))
        except KeyboardInterrupt:
            if not match.candidates:
                raise KeyboardInterrupt("before the first candidates were ranked") from None
        return match

    def refine(
        self,
        target: Distance,
        vector: np.ndarray,
        seconds: float = float("inf"),
        renders: int | None = None,
        seed: int = 0,
        key: int | None = None,
        held: Collection[str] = (),
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """CMA-ES (Hansen's `cma`, diagonal) on the scalar parameters around `vector`, for `seconds` or `renders`.

        It moves in quantiles, where every parameter has the same scale; categories stay, and those that are `held`.
        Yields every population, vectors `(n, width)` and distances `(n,)`.
        """
        free = [p.name for p in self.space if p.kind != "categorical" and p.name not in held]
        columns = [self.space.columns[name].start for name in free]
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
        deadline, done = time.perf_counter() + seconds, 0
        while not search.stop():
            if (time.perf_counter() >= deadline) if renders is None else (done + POPULATION > renders):
                return
            points = search.ask()
            quantiles = np.repeat(centre[None], len(points), axis=0)
            quantiles[:, columns] = points
            vectors = self.space.from_quantiles(quantiles)
            values = self.distances(target, vectors, key)
            search.tell(points, values.tolist())
            done += len(vectors)
            yield vectors, values

    def _render(self, data: bytes, key: int | None) -> np.ndarray:
        return render(self.space, self.synth, np.frombuffer(data, np.float32), key)


def render(space: ParameterSpace, synth: Synth, vector: np.ndarray, key: int | None = None) -> np.ndarray:
    """The sound of a vector, float32 `(channels, samples)`."""
    return synth.render(*at_key(synth, *space.decode(vector), key), space.seconds)[: synth.channels]


def score(
    space: ParameterSpace, synth: Synth, target: Distance, vectors: np.ndarray, key: int | None = None
) -> np.ndarray:
    """Render vectors `(n, width)` and give their distances `(n,)` to `target`."""
    return np.array([target(render(space, synth, vector, key)[None])[0] for vector in vectors])


_tasks: dict[str, tuple[ParameterSpace, Synth, Distance]] = {}  # in a worker: the targets it knows, by token


def _score_in_worker(
    token: str, vectors: np.ndarray, key: int | None, text: str = "", target: Distance | None = None
) -> np.ndarray | None:
    """`score`, or None if this worker does not know the target of that token and is not told."""
    if token not in _tasks:
        if target is None:
            return None
        torch.set_num_threads(1)
        while len(_tasks) >= 4:
            del _tasks[next(iter(_tasks))]
        _tasks[token] = (*open_space(text), target)
    return score(*_tasks[token], vectors, key)
