"""What a listener would mind, in units: how far a render is from its target, and out of tune with it."""

from __future__ import annotations

import copy
import math

import numpy as np

from synthnb.metrics import Distance
from synthnb.pitch import find_pitch

STEEP = 6  # how often what is over the bound of MSS counts, beside the once that all of it counts


class TunedDistance(Distance):
    """`Distance`, and for a pitched target up to 1 more: 0.01 for each cent that a render is out of tune with it.

    Attributes:
        pitch: of the target; None if it is unpitched.
        most: MSS, of which each decibel more counts seven times: a lower distance with a higher MSS than that of what
            refining began with is a doubtful gain.
    """

    most = math.inf

    def __init__(self, target: np.ndarray):
        super().__init__(target)
        self.pitch = find_pitch(target)

    def __call__(self, renders: np.ndarray) -> np.ndarray:
        """Of renders `(batch, channels, samples)`: float64 `(batch,)`, 0 or more."""
        values = super().__call__(renders)
        if self.pitch:
            values += [out_of_tune(self.cents(render)) for render in renders]
        return values

    def _mss(self, padded: np.ndarray) -> float:
        mss = super()._mss(padded)
        return mss + STEEP * max(0.0, mss - self.most)

    def bounded(self, most: float) -> TunedDistance:
        """The same with a bound of its own."""
        bounded = copy.copy(self)
        bounded.most = most
        return bounded

    def cents(self, render: np.ndarray) -> float | None:
        """How much higher than the target a render `(channels, samples)` sounds; None if either is unpitched."""
        pitch = self.pitch and find_pitch(render)
        return 1200 * math.log2(pitch.hz / self.pitch.hz) if pitch else None


def out_of_tune(cents: float | None) -> float:
    """What tuning adds to the distance from a pitched target, 0 to 1; None is a render without pitch."""
    return 1.0 if cents is None else min(1.0, abs(cents) / 100)
