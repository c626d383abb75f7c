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

import math
from collections.abc import Iterator

import numpy as np

from synthnb.features.fast import Spectrum
from synthnb.metrics import MSS_SCALES, SOT_FRAME, Distance, _cosine, _decibels
from synthnb.metrics import UNITS as METRIC_UNITS
from synthnb.pitch import WINDOW, Pitch, find_pitch
from synthnb.search import hearing

#: One unit of each term, a mistake of about the same size (measured in tests/test_distance.py). Of a sawtooth, an
#: octave up: MSS, spectrum. Steady instead of decaying: RMS, level. 100 ms of fade-in: attack. 50 cents sharp: tuning
#: and partials. No vibrato of 30 cents, no tremolo of 3 dB, to either side, at 5 Hz: vibrato and tremolo.
UNITS = {
    "MSS": METRIC_UNITS["MSS"],
    "spectrum": 0.089,
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
    "spectrum": 0.3,
    "RMS": 0.25,
    "level": 0.5,
    "attack": 0.4,
    "tuning": 0.6,
    "partials": 0.5,
    "vibrato": 0.3,
    "tremolo": 0.3,
}
#: Of `MSS_SCALES`, those that rank; the first one's bands tell brightness too. On random patches they correlate by .996
#: with all three.
SCALES = (2, 1)
SLOWER = 2  #: times as far apart as those of SOT are the spectra that show a vibrato, 40 ms
CLEAR = 0.9  # a pitch that fits less than that of the target's doesn't disturb it
FAR = 100.0  #: cents: a tone this far from its target is as wrong as any, and so is one without pitch


class HeardDistance(Distance):
    """One target against many renders, by what a listener minds; `mss`, `sot` and `rms` are the published metrics.

    `(batch, channels, samples)` to float64 `(batch,)`, 0 or more, as `metrics.Distance`, at 44.1 kHz. How loud a clip
    is as a whole doesn't matter. About 6 ms for a clip of 4 s in mono on one core.

    Attributes:
        pitch: of the target; None if it is unpitched, and then nothing is out of tune with it.
    """

    def __init__(self, target: np.ndarray):
        super().__init__(target)
        self.pitch = find_pitch(target)
        (clip,) = self._clips(np.asarray(target)[None])
        energy = hearing.energies(clip)
        window, hop = self._window_and_hop(*SOT_FRAME)
        self._spectra = Spectrum(window, SLOWER * hop)
        self._shares = hearing.shares(self._mels[SCALES[0]].power(clip))
        self._level, self._amplitude = hearing.levels(energy), hearing.envelope(energy)
        self._start = hearing.onset(energy)
        self._rise = hearing.rise(energy, self._start)
        self._audible = hearing.audible(energy, self._shares.shape[1], self._hop)
        loud = hearing.sounding(energy)
        self._steady = hearing.steady(loud)
        # A few spectra do, unless they hear another pitch than all of them.
        few = np.linspace(*hearing.span(hearing.sounding(energy, 30.0)), hearing.SPECTRA).astype(int)
        for self._starts in (few, np.arange(0, clip.shape[1], WINDOW // 2)):
            power, instant = hearing.spectra(clip, self._starts)
            self._near, fit = hearing.pitch(power, instant) if self.pitch else (None, None)
            if not self.pitch or (self._near and abs(cents_between(self._near, self.pitch)) < FAR / 2):
                break
        self._rival = hearing.rival(fit, self._near.cents_from(0) / 100) if self._near else 1.0
        self._partials = hearing.partials(power, instant)
        self._tremolo = hearing.tremolo(energy, self._steady)
        self._vibrato = self._swings(clip, power)

    @property
    def _hop(self) -> int:
        return int(MSS_SCALES[SCALES[0]][1] * self.sample_rate)

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
        return cents_between(pitch, self.pitch) if pitch else None

    def _units(self, clip: np.ndarray) -> Iterator[tuple[str, float]]:
        """Names and units of the terms, none negative, those that tell most for their time first; MSS in its scales."""
        energy = hearing.energies(clip)
        gaps = {
            "level": self._level_gap(energy),
            "attack": np.abs(hearing.rise(energy, self._start) - self._rise).mean(),
            "RMS": 1 - _cosine(self._amplitude, hearing.envelope(energy)),
            "tremolo": np.abs(hearing.tremolo(energy, self._steady) - self._tremolo).sum(),
        }
        for name, gap in gaps.items():
            yield name, float(gap) / UNITS[name]
        for scale in SCALES:
            power = self._mels[scale].power(clip)
            if scale == SCALES[0]:
                moved = np.abs(hearing.shares(power) - self._shares).mean(axis=0)
                heard = np.maximum(hearing.audible(energy, len(moved), self._hop), self._audible)
                yield "spectrum", float(moved @ heard) / max(heard.sum(), 1e-9) / UNITS["spectrum"]
            gap = np.abs(self._target_mels[scale] - _decibels(power)).mean()
            yield "MSS", float(gap) / len(SCALES) / UNITS["MSS"]
        power, instant = hearing.spectra(clip, self._starts)
        yield (
            "partials",
            (1 - _cosine(self._partials, hearing.partials(power, instant))) / UNITS["partials"],
        )
        if self._near:
            yield "tuning", self._off(*hearing.pitch(power, instant)) / UNITS["tuning"]
        if self._near:
            gap = np.abs(self._swings(clip, power) - self._vibrato).sum()
            yield "vibrato", min(float(gap), FAR) / UNITS["vibrato"]

    def _swings(self, clip: np.ndarray, power: np.ndarray) -> np.ndarray:
        """`hearing.vibrato` of the partial that is strongest in `hearing.spectra`."""
        magnitude = self._spectra.magnitude(clip.mean(axis=0, keepdims=True))[0]
        frames = slice(self._steady.start // SLOWER, self._steady.stop // SLOWER)
        return hearing.vibrato(magnitude, frames, hearing.strongest(power), SLOWER * hearing.PERIOD)

    def _off(self, near: Pitch | None, fit: np.ndarray) -> float:
        """Cents out of tune, up to `FAR`; or as much of it as another pitch fits nearly as well."""
        if near is None:
            return FAR
        cents = abs(cents_between(near, self._near))
        rival = hearing.rival(fit, self._near.cents_from(0) / 100) - max(self._rival, CLEAR)
        return min(FAR, max(cents, FAR * rival / (1 - CLEAR)))

    def _level_gap(self, energy: np.ndarray) -> float:
        """Mean difference of levels in dB, over the time that either sounds."""
        quiet = self._level.max() - hearing.FLOOR
        target, render = np.maximum(self._level, quiet), np.maximum(hearing.levels(energy), quiet)
        heard = np.maximum(target, render) > quiet
        return float(np.abs(target - render).sum() / max(heard.sum(), 1))


def cents_between(pitch: Pitch, other: Pitch) -> float:
    """How much higher `pitch` is."""
    return 1200 * math.log2(pitch.hz / other.hz)
