"""What a listener would mind, in units: how far a render is from its target.

    distance = HeardDistance(target)        # (channels, samples)
    distance(renders)                       # (batch, channels, samples) -> (batch,), lower is better
    distance.staged(render, bound)          # the same of one render, or infinity as soon as it is over `bound`
    distance.terms(render)                  # what it consists of

MSS leads, but is deaf to what listeners mind first: it averages over four seconds and 224 bands, so that an attack, a
tail and a detuned note weigh little, while hiss and the phase of a vibrato weigh much. So each of these has a term of
its own, and `evaluate.pairs` says whether they agree with a listener.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np

from synthnb.metrics import MSS_SCALES, SOT_FRAME, Distance, _cosine
from synthnb.metrics import UNITS as METRIC_UNITS
from synthnb.pitch import Pitch, find_pitch
from synthnb.search import hearing
from synthnb.sound import SAMPLE_RATE

#: One unit of each term, a mistake of about the same size (measured in tests/test_distance.py). Of a sawtooth, an
#: octave up: MSS, spectrum. Steady instead of decaying: RMS, level. 100 ms of fade-in: attack. 50 cents sharp: tuning
#: and partials. No vibrato of 30 cents, no tremolo of 3 dB, to either side, at 5 Hz: vibrato and tremolo.
UNITS = {
    "MSS": METRIC_UNITS["MSS"],
    "SOT": METRIC_UNITS["SOT"],
    "spectrum": 0.12,
    "RMS": METRIC_UNITS["RMS"],
    "level": 10.0,
    "attack": 8.0,
    "tuning": 50.0,
    "partials": 0.8,
    "vibrato": 60.0,
    "tremolo": 6.0,
}

WEIGHTS = {
    "MSS": 1.0,
    "SOT": 0.03,
    "spectrum": 0.3,
    "RMS": 0.25,
    "level": 0.5,
    "attack": 0.4,
    "tuning": 0.4,
    "partials": 0.5,
    "vibrato": 0.3,
    "tremolo": 0.3,
}
SOT_HOP = int(SOT_FRAME[1] * SAMPLE_RATE)
STEEP = 6  # how often what is over the bound of MSS counts, beside the once that all of it counts
CLEAR = 0.9  # a pitch that fits less than that of the target's doesn't disturb it
FAR = 100.0  #: cents: a tone this far from its target is as wrong as any, and so is one without pitch


class HeardDistance(Distance):
    """One target against many renders, by what a listener minds; `mss`, `sot` and `rms` are the published metrics.

    `(batch, channels, samples)` to float64 `(batch,)`, 0 or more, as `metrics.Distance`, at 44.1 kHz. How loud a clip
    is as a whole doesn't matter. About 8 ms for a clip of 4 s in mono on one core.

    Attributes:
        pitch: of the target; None if it is unpitched, and then nothing is out of tune with it.
    """

    def __init__(self, target: np.ndarray):
        super().__init__(target)
        self.pitch = find_pitch(target)
        (clip,) = self._clips(np.asarray(target)[None])
        energy, magnitude = hearing.energies(clip), self._magnitude(clip)
        bins, frames = magnitude.shape
        self._steps = hearing.erb_steps(bins, self.sample_rate / 2 / (bins - 1))
        self._level, self._envelope_of_energies = hearing.levels(energy), hearing.envelope(energy)
        self._start = hearing.onset(energy)
        self._rise = hearing.rise(energy, self._start)
        self._audible = hearing.audible(energy, frames, SOT_HOP)
        loud = hearing.sounding(energy)
        self._steady = hearing.steady(loud)
        self._starts = np.linspace(*hearing.span(hearing.sounding(energy, 30.0)), hearing.SPECTRA).astype(int)
        power, instant = hearing.spectra(clip, self._starts)
        self._partials = hearing.partials(power, instant)
        self._near, fit = hearing.pitch(power, instant) if self.pitch else (None, None)
        self._rival = hearing.rival(fit, self._near.cents_from(0) / 100) if self._near else 1.0
        self._tremolo = hearing.tremolo(energy, self._steady)
        self._vibrato = hearing.vibrato(magnitude, self._steady, hearing.strongest(power))

    def __call__(self, renders: np.ndarray) -> np.ndarray:
        return np.array(
            [sum(WEIGHTS[name] * units for name, units in self._units(clip)) for clip in self._clips(renders)]
        )

    def staged(self, render: np.ndarray, bound: float = math.inf) -> float:
        """The distance of one render `(channels, samples)`, or infinity as soon as it is over `bound`."""
        (clip,) = self._clips(np.asarray(render)[None])
        total = 0.0
        for name, units in self._units(clip):
            total += WEIGHTS[name] * units
            if total > bound:
                return math.inf
        return total

    def terms(self, render: np.ndarray) -> dict[str, float]:
        """What the distance of one render `(channels, samples)` adds up, by name, in `UNITS`, before `WEIGHTS`."""
        (clip,) = self._clips(np.asarray(render)[None])
        terms = dict.fromkeys(WEIGHTS, 0.0)
        for name, units in self._units(clip):
            terms[name] += units
        return terms

    def cents(self, render: np.ndarray) -> float | None:
        """How much higher than the target a render `(channels, samples)` sounds; None if either is unpitched."""
        pitch = self.pitch and find_pitch(render)
        return 1200 * math.log2(pitch.hz / self.pitch.hz) if pitch else None

    def _units(self, clip: np.ndarray) -> Iterator[tuple[str, float]]:
        """Names and units of the terms, none negative, those that tell most for their time first; MSS in its scales."""
        energy = hearing.energies(clip)
        gaps = {
            "level": self._level_gap(energy),
            "attack": np.abs(hearing.rise(energy, self._start) - self._rise).mean(),
        }
        gaps["RMS"] = 1 - _cosine(self._envelope_of_energies, hearing.envelope(energy))
        gaps["tremolo"] = np.abs(hearing.tremolo(energy, self._steady) - self._tremolo).sum()
        for name, gap in gaps.items():
            yield name, gap / UNITS[name]
        for scale in reversed(range(len(MSS_SCALES))):  # the coarsest is the cheapest...
            yield "MSS", self._mel_gap(scale, clip) / len(MSS_SCALES) / UNITS["MSS"]
        power, instant = hearing.spectra(clip, self._starts)
        yield "partials", max(0.0, 1 - self._partials @ hearing.partials(power, instant)) / UNITS["partials"]
        if self._near:
            yield "tuning", self._off(*hearing.pitch(power, instant)) / UNITS["tuning"]
        magnitude = self._magnitude(clip)
        moved, in_hertz = hearing.transport(magnitude, self._target_shares, self._steps)
        heard = np.maximum(hearing.audible(energy, len(moved), SOT_HOP), self._audible)
        yield "spectrum", moved @ heard / max(heard.sum(), 1e-9) / UNITS["spectrum"]
        yield "SOT", in_hertz.mean() / UNITS["SOT"]
        if self._near:
            gap = np.abs(
                hearing.vibrato(magnitude, self._steady, hearing.strongest(power)) - self._vibrato
            ).sum()
            yield "vibrato", min(gap, FAR) / UNITS["vibrato"]

    def _off(self, near: Pitch | None, fit: np.ndarray) -> float:
        """Cents out of tune, up to `FAR`; or as much of it as another pitch fits nearly as well."""
        if near is None:
            return FAR
        cents = abs(1200 * math.log2(near.hz / self._near.hz))
        rival = hearing.rival(fit, self._near.cents_from(0) / 100) - max(self._rival, CLEAR)
        return min(FAR, max(cents, FAR * rival / (1 - CLEAR)))

    def _level_gap(self, energy: np.ndarray) -> float:
        """Mean difference of levels in dB, over the time that either sounds."""
        quiet = self._level.max() - hearing.FLOOR
        target, render = np.maximum(self._level, quiet), np.maximum(hearing.levels(energy), quiet)
        heard = np.maximum(target, render) > quiet
        return float(np.abs(target - render).sum() / max(heard.sum(), 1))


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
