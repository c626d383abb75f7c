"""How many candidates a second a search plays and measures, against what the bare engine would play of the same."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from synthnb.metrics import Distance
from synthnb.search.candidate import Press
from synthnb.search.play import AS_IT_IS, Player


class ClockedPlayer(Player):
    """A `Player` with a clock: in place of a matcher's own it measures what its searches do.

        matcher.player = ClockedPlayer(matcher.space, matcher.workers)
        matcher.match(sound, renders=300)
        matcher.player.rates()

    After every `score` it plays the same vectors again by the bare engine, on the same threads, so that both meet the
    same state of the machine. So give a search a number of renders, not of seconds.
    """

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self._clips, self._over, self._scoring, self._engine = 0, 0, 0.0, 0.0

    def score(
        self, distance: Distance, vectors: np.ndarray, press: Press = AS_IT_IS, bound: float = np.inf
    ) -> np.ndarray:
        start = time.perf_counter()
        values = super().score(distance, vectors, press, bound)
        self._scoring += time.perf_counter() - start
        self._clips, self._over = self._clips + len(values), self._over + np.isinf(values).sum()
        engine = self._threads.map(lambda vector: self._bare(vector, press), vectors)
        self._engine += sum(engine) / min(self.workers, len(vectors))
        return values

    def _bare(self, vector: np.ndarray, press: Press) -> float:
        with self._synth() as synth:
            return synth.engine_seconds(*self._played(synth, vector, press), self.space.seconds)

    def rates(self) -> pd.Series:
        """Of all that was scored so far: clips, the share that was over the bound, clips a second, and their ratio.

        `score` is the rate of scoring, `engine` that of the bare engine on as many threads.
        """
        rates = {"score": self._clips / self._scoring, "engine": self._clips / self._engine}
        ratio = rates["score"] / rates["engine"]
        over = self._over / self._clips
        return pd.Series({"clips": self._clips, "over the bound": over, **rates, "ratio": ratio})
