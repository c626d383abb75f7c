"""Play vectors and score them, on several cores: threads, each with a synth of its own.

player = Player(space)
values = player.score(distance, vectors, bound=0.8)   # inf: not under the bound, wherever that was clear early
audio = player.render(vectors[values.argmin()])       # not played again
"""

from __future__ import annotations

import contextlib
import heapq
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import joblib
import numpy as np
import torch

from synthnb.metrics import Distance
from synthnb.search.candidate import Press
from synthnb.space import Note, ParameterSpace, Patch
from synthnb.synths import Synth, open_synth

AS_IT_IS = Press()
REMEMBERED = 32  # sounds; one of 4 s takes 1.4 MB in stereo
#: Every so manyth sample tells sounds apart: those that differ at all differ there. One in seven candidates of a DX7's
#: population sounds like an earlier one to the bit, as what was changed isn't heard.
STRIDE = 16


class Player:
    """Plays vectors and scores them.

    Dexed frees the interpreter while it plays, a plugin lives in a process of its own, and what measures frees it
    mostly; so threads do, and nothing is sent around. What is scored doesn't depend on how many they are.

    Args:
        space: of the vectors.
        workers: threads, each with a synth of its own, which opens when it is first needed; -1: as many as cores.

    Raises:
        ValueError: `workers` is neither 1 or more nor -1.
        SynthNotFound: the space's synth is not installed.
    """

    def __init__(self, space: ParameterSpace, workers: int = -1):
        if workers < 1 and workers != -1:
            raise ValueError(f"workers is {workers}; give 1 or more, or -1 for all cores")
        self.space = space
        self.workers = joblib.cpu_count() if workers == -1 else workers
        # The last one given back is the first one taken, so that no more open than play at once.
        self._idle: queue.LifoQueue[Synth] = queue.LifoQueue()
        self.synth = open_synth(space)
        self._idle.put(self.synth)
        self._threads = ThreadPoolExecutor(self.workers, "player", lambda: torch.set_num_threads(1))
        self._sounds: OrderedDict[tuple[bytes, Press], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        # Of each distance, by what a sound is: its value, or infinity and the bound it was over.
        self._values: WeakKeyDictionary[Distance, dict[int, tuple[float, float]]] = WeakKeyDictionary()

    def render(self, vector: np.ndarray, press: Press = AS_IT_IS) -> np.ndarray:
        """The sound of a vector `(width,)`: float32 `(channels, samples)`, full scale not limited to 1.

        With random phases a patch never sounds the same twice; the last few sounds, and the best of those that were
        scored last, are remembered and given again.

        Args:
            press: how it is played; with its own key by default.

        Raises:
            SpaceError: no vector of this space.
            SynthError: the synth crashed or hangs.
        """
        sound = self._remembered(vector, press)
        if sound is None:
            sound = self._play(vector, press)
            self._remember(vector, press, sound)
        return sound

    def score(
        self, distance: Distance, vectors: np.ndarray, press: Press = AS_IT_IS, bound: float = np.inf
    ) -> np.ndarray:
        """Play vectors `(n, width)` and measure them: float64 `(n,)`, in their order.

        Args:
            distance: to the target. Its `staged(clip, bound)`, if it has one, stops when a clip `(channels, samples)`
                is over the bound.
            press: as for `render`.
            bound: what is above it is `inf`, and not measured to its end.

        Raises what `render` does.
        """
        best: list[tuple[float, int, np.ndarray]] = []  # a heap with the worst of the best first
        lock, known = threading.Lock(), self._values.setdefault(distance, {})

        def measured(i: int) -> float:
            sound = self._remembered(vectors[i], press)
            if sound is None:
                sound = self._play(vectors[i], press)
            of = hash(sound[:, ::STRIDE].tobytes())
            value, over = known.get(of, (np.inf, -np.inf))
            if value == np.inf and over < bound:
                value = measure(distance, sound, bound)
                known[of] = value, bound
            if value > bound:
                return np.inf
            if value < np.inf:
                with lock:
                    # Never two of the same first two, so arrays aren't compared.
                    (heapq.heappush if len(best) < REMEMBERED else heapq.heappushpop)(
                        best, (-value, -i, sound)
                    )
            return value

        values = np.array(list(self._threads.map(measured, range(len(vectors)))), dtype=np.float64)
        for _, i, sound in sorted(best, key=lambda each: each[:2]):
            self._remember(vectors[-i], press, sound)
        return values

    def _play(self, vector: np.ndarray, press: Press) -> np.ndarray:
        with self._synth() as synth:
            patch, note = self._played(synth, vector, press)
            return synth.render(patch, note, self.space.seconds)[: synth.channels]

    def _played(self, synth: Synth, vector: np.ndarray, press: Press) -> tuple[Patch, Note]:
        return press(synth, *self.space.decode(vector), self.space.seconds)

    @contextlib.contextmanager
    def _synth(self) -> Iterator[Synth]:
        """A synth that is nobody else's."""
        try:
            synth = self._idle.get_nowait()
        except queue.Empty:
            synth = open_synth(self.space)
        try:
            yield synth
        finally:
            self._idle.put(synth)

    def _remembered(self, vector: np.ndarray, press: Press) -> np.ndarray | None:
        with self._lock:
            return self._sounds.get((np.asarray(vector, np.float32).tobytes(), press))

    def _remember(self, vector: np.ndarray, press: Press, sound: np.ndarray) -> None:
        with self._lock:
            of = np.asarray(vector, np.float32).tobytes(), press
            self._sounds[of] = sound
            self._sounds.move_to_end(of)
            while len(self._sounds) > REMEMBERED:
                self._sounds.popitem(last=False)


def measure(distance: Distance, sound: np.ndarray, bound: float) -> float:
    """The distance of a sound `(channels, samples)`; `inf` if it was clear early that it is over the bound."""
    staged = getattr(distance, "staged", None)
    return staged(sound, bound) if staged else float(distance(sound[None])[0])
