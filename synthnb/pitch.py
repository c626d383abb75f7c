"""The pitch of a single note: which key was played, and how far out of tune.

    pitch = find_pitch(read_sound("bass.mp3"))   # None: unpitched
    pitch.key, pitch.cents                       # 40, -7.2
    pitch.cents_from(52)                         # -1207.2: an octave below

The whole note is judged at once, not frame by frame, by a variant of SWIPE' (A. Camacho and J. G. Harris, "A sawtooth
waveform inspired pitch estimator for speech and music", JASA 124, 2008): the loudness of its spectrum is compared with
a comb for each candidate, which has teeth at the fundamental and its prime multiples (so that an octave below fits
worse) and troughs between (so that an octave above does). What differs: narrower teeth and one long window, as a note
holds still; and the noise floor is taken off before, so that the fit also tells noise from tone.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import percentile_filter

from synthnb.features.fast import compiled
from synthnb.sound import SAMPLE_RATE

LOWEST, HIGHEST = 21, 108  #: MIDI keys, those of a piano
UNPITCHED = 0.18  #: confidence below which a sound has no pitch; cymbals and snares have up to 0.17, notes from 0.2 on
WINDOW, HOP = 8192, 4096  # samples: five periods of the lowest key
TOOTH = 0.12  # half a tooth's width, in fundamentals
STEPS = 8  # candidates a semitone
PRIMES = (1, 2, 3, 5, 7, 11, 13, 17, 19, 23)
PARTIALS = 5  # that tune the pitch


@dataclass(frozen=True)
class Pitch:
    """A note's pitch: `hz`, and `confidence` in [0, 1], the fit of its spectrum to that of a harmonic tone."""

    hz: float
    confidence: float

    @property
    def key(self) -> int:
        """The nearest MIDI key (equal temperament, A4 = key 69 = 440 Hz)."""
        return round(self._number)

    @property
    def cents(self) -> float:
        """Deviation from that key, in [-50, 50]."""
        return self.cents_from(self.key)

    def cents_from(self, key: int) -> float:
        """Deviation from any MIDI key: 1200 is an octave above it."""
        return 100 * (self._number - key)

    @property
    def _number(self) -> float:
        return 69 + 12 * float(np.log2(self.hz / 440))


def find_pitch(audio: np.ndarray) -> Pitch | None:
    """The pitch of one note, `audio` float (channels, samples) at 44.1 kHz; None if it has none, or is silent.

    Keys 21 to 108. The pitch is that of the most energetic half of the note, so neither a vibrato nor a scoop moves it
    by much; steady tones are tuned to 2 cents if they last 200 ms. A bell is given one of its partials. An organ sounds
    as its stops do, an octave or two below the key with a 16' or 32' stop. 4 s take 7 ms in mono and 20 in stereo.
    """
    padded = np.pad(audio, ((0, 0), (WINDOW // 4, WINDOW + HOP)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, : audio.shape[1] : HOP]
    window, slope = _windows()
    spectrum, derivative = np.fft.rfft(frames * window), np.fft.rfft(frames * slope)
    power = (spectrum.real**2 + spectrum.imag**2).sum(axis=0)
    energy = power.sum(axis=1)
    if not energy.any():
        return None
    heard = energy > 1e-4 * energy.max()
    # Each bin's instantaneous frequency, in bins (Auger and Flandrin 1995).
    turn = (derivative.imag * spectrum.real - derivative.real * spectrum.imag).sum(axis=0)[heard]
    power = power[heard]
    instant = np.arange(power.shape[1]) - turn / np.maximum(power, 1e-20) * WINDOW / (2 * np.pi)
    return pitch_of(power, instant)


def pitch_of(power: np.ndarray, instant: np.ndarray, fit: np.ndarray | None = None) -> Pitch | None:
    """The pitch of spectra with windows of `WINDOW` samples; None if there is none.

    Args:
        power: `(frames, bins)`, from bin 0 to 12 kHz at least, no frame silent.
        instant: each bin's instantaneous frequency, in bins.
        fit: `fits(power)`, if it is there already.
    """
    fit = fits(power) if fit is None else fit
    if fit.max() < UNPITCHED:
        return None
    fundamental = _tune(power, instant, _combs()[0][fit.argmax()])
    return Pitch(float(fundamental * SAMPLE_RATE / WINDOW), float(fit.max()))


def fits(power: np.ndarray) -> np.ndarray:
    """How well spectra fit each pitch, `STEPS` a semitone from key `LOWEST` - 0.5 on: at most 1; `power` as above."""
    _, frequencies, combs = _combs()
    loudness = _loudness(power, frequencies)
    loudness -= percentile_filter(loudness, 25, size=len(loudness) // 10)
    # By PyTorch, as NumPy's product would start threads, which take longer than it does and disturb those of a search.
    return (torch.from_numpy(combs) @ torch.from_numpy(np.maximum(loudness, 0))).numpy()


@compiled
def _loudness(power, frequencies):
    """Loudness at `frequencies` (in bins) of a mean frame, norm 1: of spectra that count by their amplitude."""
    mean = np.zeros(len(frequencies))
    frame = np.zeros_like(mean)
    for f in range(len(power)):
        total, square = 0.0, 0.0
        for k in range(power.shape[1]):
            total += power[f, k]
        for i in range(len(frequencies)):
            k = int(frequencies[i])
            share = frequencies[i] - k
            frame[i] = (1 - share) * power[f, k] ** 0.25 + share * power[f, k + 1] ** 0.25
            square += frame[i] ** 2
        scale = np.sqrt(total) / max(np.sqrt(square), 1e-20)  # rumble has none here
        for i in range(len(frequencies)):
            mean[i] += scale * frame[i]
    return mean / max(np.sqrt((mean**2).sum()), 1e-20)


@compiled
def _tune(power, instant, fundamental):
    """`fundamental` (in bins) moved to where the partials are: the interquartile mean over frames and partials."""
    frames = len(power)
    ratios, weights = np.zeros(PARTIALS * frames), np.zeros(PARTIALS * frames)
    for _ in range(2):
        for partial in range(1, PARTIALS + 1):
            middle = partial * fundamental
            first, last = int(middle / 1.09), int(middle * 1.09) + 2  # 150 cents to either side
            for f in range(frames):
                energy, moment = 1e-20, 0.0
                for k in range(first, min(last, power.shape[1])):
                    energy += power[f, k]
                    moment += power[f, k] * instant[f, k]
                at = (partial - 1) * frames + f
                ratios[at], weights[at] = moment / energy / middle, np.sqrt(energy) / partial
        order, total = np.argsort(ratios), weights.sum()
        share, before, mean = 0.0, 0.25, 0.0
        for at in order:
            share += weights[at] / total
            upto = min(max(share, 0.25), 0.75)
            mean += ratios[at] * (upto - before)
            before = upto
        fundamental *= mean / 0.5
    return fundamental


@functools.cache
def _windows() -> tuple[np.ndarray, np.ndarray]:
    """Hann, and its derivative by the sample."""
    angle = 2 * np.pi / WINDOW * np.arange(WINDOW)
    return (0.5 - 0.5 * np.cos(angle)).astype(np.float32), (np.pi / WINDOW * np.sin(angle)).astype(np.float32)


@functools.cache
def _combs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates (`STEPS` a semitone) and frequencies (20 an ERB), both in bins; combs `(candidates, frequencies)`."""
    keys = np.arange(LOWEST - 0.5, HIGHEST + 0.5, 1 / STEPS)
    candidates = 440 * 2 ** ((keys - 69) / 12)
    low, high = 21.4 * np.log10(1 + np.array([20, 12_000]) / 229)
    frequencies = 229 * (10 ** (np.arange(low, high, 0.05) / 21.4) - 1)
    multiple = frequencies / candidates[:, None]
    combs = np.zeros_like(multiple)
    for prime in PRIMES:
        away = np.abs(multiple - prime)
        combs += np.where((away > 0.25) & (away < 0.75), np.cos(2 * np.pi * multiple) / 2, 0)
        combs = np.where(away < TOOTH, np.cos(np.pi / 2 * away / TOOTH), combs)
    combs /= np.sqrt(frequencies)
    combs /= np.linalg.norm(np.maximum(combs, 0), axis=1, keepdims=True)
    to_bins = WINDOW / SAMPLE_RATE
    return candidates * to_bins, frequencies * to_bins, combs
