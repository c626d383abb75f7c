"""What a listener hears in a note, as numbers: level over time, its beginning, pitch, partials, brightness, modulation.

All of them are of a clip `(channels, samples)` at 44.1 kHz, one channel or two, and cheap: a search takes them of every
render. Levels are those of all channels together, and none depends on how loud the clip is as a whole.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft
from scipy.ndimage import percentile_filter

from synthnb.features.fast import FAINTEST_FRAME
from synthnb.pitch import LOWEST as LOWEST_KEY
from synthnb.pitch import STEPS, WINDOW, Pitch, fits, pitch_of
from synthnb.sound import SAMPLE_RATE

HOP = SAMPLE_RATE // 200  #: samples of a step of `energies`, 5 ms
STEP = 10  #: of them in a step of `levels`, 50 ms
FRAME = 4  #: of them from one of the spectra of `metrics.SOT_FRAME` to the next, 20 ms
PERIOD = FRAME * HOP / SAMPLE_RATE  #: seconds of that
FLOOR = 60.0  #: dB below its loudest where a sound ends
SPECTRA = 8  #: taken of a note
ONSETS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  #: hops after the beginning, 10 to 320 ms
SETTLED = 100  #: hops after which what came before is all of an onset, 500 ms
LATEST = 30.0  #: dB: how little counts as no onset yet
RATES = (2.0, 2.8, 4.0, 5.7, 8.0, 11.3, 16.0)  #: Hz, of modulations, half an octave wide
MODULATED = 0.4  #: seconds at least
LOWEST, OCTAVES, CENTS = 40.0, 7.5, 10  # Hz, of a log-frequency spectrum; the width of its cells
BROAD = 3  # cells to either side that a partial reaches


def energies(clip: np.ndarray) -> np.ndarray:
    """Mean power of every 5 ms, all channels together: float64 `(hops,)`; their mean is 1, or all are 0."""
    hops = clip.shape[1] // HOP
    steps = clip[:, : hops * HOP].reshape(len(clip), hops, HOP)
    power = np.einsum("chs,chs->h", steps, steps).astype(np.float64)
    return power / max(power.mean(), 1e-20)


def levels(energy: np.ndarray) -> np.ndarray:
    """Levels of steps of 50 ms in dB from the clip's mean, not below 60 dB under its loudest."""
    return decibels(energy[: len(energy) // STEP * STEP].reshape(-1, STEP).mean(axis=1))


def decibels(power: np.ndarray, floor: float = FLOOR) -> np.ndarray:
    """Of powers, not below `floor` under the greatest."""
    return 10 * np.log10(np.maximum(power, max(power.max(initial=0) * 10 ** (-floor / 10), 1e-12)))


def envelope(energy: np.ndarray) -> np.ndarray:
    """Root mean square of 50 ms every 25 ms."""
    halves = energy[: len(energy) // 5 * 5].reshape(-1, 5).sum(axis=1)
    return np.sqrt(halves[1:] + halves[:-1])


def onset(energy: np.ndarray) -> int:
    """The first hop within 40 dB of the loudest."""
    return int(np.argmax(energy > energy.max() * 1e-4))


def rise(energy: np.ndarray, start: int) -> np.ndarray:
    """How much of what sounds until 500 ms after hop `start` has sounded 10 to 320 ms after it: dB in [-30, 0].

    Sums don't jump with the period of a low note, and grow with the third power of time while an attack lasts.
    """
    heard = np.cumsum(energy[: start + SETTLED])
    by = np.minimum(start + np.array(ONSETS), len(heard) - 1)
    share = heard[by] / max(heard[-1], 1e-20)
    return 10 * np.log10(np.maximum(share, 10 ** (-LATEST / 10)))


def attack(energy: np.ndarray) -> float:
    """Seconds from the first level within 20 dB of the loudest to the first within 6 dB, 5 ms at least."""
    smooth = np.convolve(energy, np.full(4, 0.25), "same")
    rising = [np.argmax(smooth >= smooth.max() * share) for share in (0.01, 0.25)]
    return (1 + int(rising[1] - rising[0])) * HOP / SAMPLE_RATE


def sounding(energy: np.ndarray, within: float = 20.0) -> slice:
    """The hops from the first to the last within so many dB of the loudest."""
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-within / 10))
    return slice(int(loud[0]), int(loud[-1]) + 1) if len(loud) else slice(0, len(energy))


def span(loud: slice) -> tuple[int, int]:
    """Samples where the first and the last of `spectra` begin: within those hops, or around them if they are few."""
    middle = (loud.start + loud.stop) * HOP // 2 - WINDOW // 2
    first = max(0, min(loud.start * HOP, middle))
    return first, max(first, loud.stop * HOP - WINDOW)


def steady(loud: slice) -> slice:
    """The 20 ms frames of those hops, but for the first 40 ms."""
    return slice(loud.start // FRAME + 2, loud.stop // FRAME)


def audible(energy: np.ndarray, frames: int, hop: float) -> np.ndarray:
    """How much is heard of frames of 50 ms every `hop` samples, `(frames,)`: 1 to 40 dB under the loudest, 0 at 60."""
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    middle = np.arange(frames) * (hop / HOP)
    ends = np.clip(np.round(middle[:, None] + [-5, 5]).astype(int), 0, len(energy))
    power = sums[ends[:, 1]] - sums[ends[:, 0]]
    return np.clip(decibels(power / max(power.max(), 1e-20)) / 20 + 3, 0, 1) if power.any() else power


def shares(power: np.ndarray) -> np.ndarray:
    """How the amplitude of each frame of a spectrum `(channels, bands, frames)` adds up from low to high, 0 to 1.

    Two such `(bands, frames)` are apart by what would have to be moved, and how far (`metrics.sot`, on another scale).
    """
    amplitude = np.sqrt(power.mean(axis=0))
    return np.cumsum(amplitude / np.maximum(amplitude.sum(axis=0), FAINTEST_FRAME), axis=0)


def spectra(clip: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power and instantaneous frequency of windows of 186 ms from samples `starts` on: both `(starts, bins)`.

    One transform gives both: Hann's window and its derivative are sums of neighbouring bins.
    """
    bins = int(12_500 / SAMPLE_RATE * WINDOW)
    padded = np.pad(clip, ((0, 0), (0, WINDOW)))
    frames = np.stack([padded[:, start : start + WINDOW] for start in starts], axis=1)
    plain = scipy.fft.rfft(frames)[..., : bins + 1]
    below, above = np.empty_like(plain[..., :-1]), plain[..., 1:]
    below[..., 1:], below[..., 0] = plain[..., : bins - 1], plain[..., 1].conj()
    hann = 0.5 * plain[..., :-1] - 0.25 * (below + above)
    turn = below - above  # the derivative's, times 2i N / pi
    power = (hann.real**2 + hann.imag**2).sum(axis=0)
    turned = (turn.real * hann.real + turn.imag * hann.imag).sum(axis=0)
    return power, np.arange(bins, dtype=np.float32) + turned / np.maximum(power, 1e-20) / 4


def pitch(power: np.ndarray, instant: np.ndarray) -> tuple[Pitch | None, np.ndarray]:
    """`pitch.find_pitch` of few spectra, None if nothing sounds there; and how well they fit each pitch (`fits`)."""
    energy = power.sum(axis=1)
    heard = energy > max(1e-4 * energy.max(), 1e-12)
    if not heard.any():
        return None, np.zeros(0)
    fit = fits(power[heard])
    return pitch_of(power[heard], instant[heard], fit), fit


def rival(fit: np.ndarray, key: float) -> float:
    """How well the best pitch a semitone or more away from `key` fits, from 0; 1 is as well as `key` does."""
    place = round((key - LOWEST_KEY + 0.5) * STEPS)
    near = slice(max(0, place - STEPS + 1), place + STEPS)
    own = fit[near].max(initial=1e-6)
    others = max(fit[: near.start].max(initial=0.0), fit[near.stop :].max(initial=0.0))
    return float(min(others / own, 2.0)) if own > 0 else 2.0


def partials(power: np.ndarray, instant: np.ndarray) -> np.ndarray:
    """Where partials are: a spectrum in steps of 10 cents from 40 Hz on, of loudness, blurred by 30 cents, norm 1."""
    cells = round(1200 * OCTAVES / CENTS)
    first, last = (int(hz / SAMPLE_RATE * WINDOW) for hz in (LOWEST, LOWEST * 2**OCTAVES))
    loud = np.sqrt(np.sqrt(power[:, first:last]))
    hz = np.maximum(instant[:, first:last], 1e-3) * (SAMPLE_RATE / WINDOW)
    cell = (np.log2(hz / LOWEST) * (1200 / CENTS)).astype(int).clip(-1, cells) + 1
    spectrum = np.bincount(cell.ravel(), loud.ravel(), cells + 2)[1:-1]
    spectrum = np.convolve(spectrum, np.bartlett(2 * BROAD + 3)[1:-1], "same")
    return spectrum / max(np.linalg.norm(spectrum), 1e-20)


def noisiness(power: np.ndarray) -> float:
    """How strong what lies between the partials of `spectra` is, dB from all, in [-60, 0]; noise has about -1.

    The lower quartile of a few hundred Hz stands for it, so a deep vibrato, which fills the gaps, counts too.
    """
    total = power.mean(axis=0)
    between = percentile_filter(total, 25, size=41).sum() / max(total.sum(), 1e-20)
    return float(10 * np.log10(np.clip(between, 1e-6, 1)))


def brightness(magnitude: np.ndarray, width: float) -> float:
    """The centre of loudness over frequency, in ERB, of a spectrum `(bins, frames)` with bins of `width` Hz.

    After Zwicker's sharpness: a band's loudness grows with the fourth root of its power, from 50 dB below the loudest.
    """
    scale = 21.4 * np.log10(1 + np.arange(len(magnitude)) * width / 229)
    bands = np.arange(round(scale[-1]))
    member = (np.floor(scale) == bands[:, None]).astype(np.float32)
    power = member @ magnitude**2
    quiet = 10 ** (-50 / 40)
    loudness = np.maximum((power / max(power.max(), 1e-20)) ** 0.25 - quiet, 0).sum(axis=1)
    return float(bands @ loudness / max(loudness.sum(), 1e-9))


def lasting(energy: np.ndarray) -> float:
    """Seconds from the beginning to the middle of the sound, by amplitude: how slowly it decays."""
    amplitude = np.sqrt(energy)[onset(energy) :]
    return float(np.arange(len(amplitude)) @ amplitude / max(amplitude.sum(), 1e-9)) * HOP / SAMPLE_RATE


def tremolo(energy: np.ndarray, frames: slice) -> np.ndarray:
    """How far the level swings in the 20 ms `frames`, in dB, `(rates,)`."""
    steps = energy[: len(energy) // FRAME * FRAME].reshape(-1, FRAME).mean(axis=1)
    smooth = np.convolve(steps, (0.25, 0.5, 0.25), "same")[frames]  # a low note's period is not a tremolo
    return modulation(decibels(smooth, 30.0))


def vibrato(magnitude: np.ndarray, frames: slice, partial: float, step: float = PERIOD) -> np.ndarray:
    """How far the partial at so many Hz of spectra of 20 Hz a bin, one every `step` s, swings in `frames`: `(rates,)`.

    In cents; see `modulation`.

    Its place in a frame is the centre of the power around it, so one that is too weak or too near to others to be
    followed seems to swing.
    """
    middle = round(partial / 20)
    reach = max(4, middle // 20)
    bins = np.arange(max(0, middle - reach), min(middle + reach + 1, len(magnitude)))
    near = magnitude[bins, frames] ** 2
    place = (bins @ near + 1e-12 * middle) / (near.sum(axis=0) + 1e-12)
    return modulation(1200 * np.log2(np.maximum(place, 0.1)), step)


def strongest(power: np.ndarray) -> float:
    """The partial of `spectra` to follow, in Hz: the strongest, and the higher of two, as it swings by more Hz."""
    total = power.sum(axis=0)
    return float(np.argmax(total * np.arange(len(total)))) * SAMPLE_RATE / WINDOW


def modulation(series: np.ndarray, step: float = PERIOD) -> np.ndarray:
    """How far a series `(n,)` with a value every `step` s swings, in its own unit, `(rates,)`: at those of `RATES` that
    it can hold.

    A straight line through it is taken off, and the ends are faded. All are 0 if it lasts less than 0.4 s.
    """
    window, lines, bands = _modulation(max(len(series), 2), step)
    if len(series) * step < MODULATED:
        return np.zeros(len(bands))
    flat = (series - lines @ (lines.T @ series)) * window
    return np.sqrt(bands @ np.abs(scipy.fft.rfft(flat)) ** 2)


@functools.lru_cache(maxsize=16)
def _modulation(count: int, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Window `(count,)`, straight lines `(count, 2)`, and what a band takes of each frequency's power."""
    window = np.hanning(count + 2)[1:-1]
    lines, _ = np.linalg.qr(np.stack([np.ones(count), np.arange(count)], axis=1))
    frequencies = scipy.fft.rfftfreq(count, step).clip(1e-3)
    rates = np.array([rate for rate in RATES if rate * step < 0.46])
    octaves = np.log2(frequencies / rates[:, None])
    bands = np.exp(-0.5 * (octaves / 0.3) ** 2)
    return window, lines, bands * (4 / (window**2).sum() / count)
