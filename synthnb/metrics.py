"""How far a render is from its target: the paper's four numbers, and a fast distance that ranks candidates.

`mss`, `wmfcc`, `sot` and `rms_cosine` are the audio metrics of Hayes, Saitis and Fazekas, "Audio synthesizer
inversion in symmetric parameter spaces with approximately equivariant flow matching" (ISMIR 2025, arXiv
2506.07199), as its `scripts/compute_audio_metrics.py` computes them, so that they fit into one table with the
published ones. Audio is float `(channels, samples)`, one channel or two; a mono clip and its copy on two
channels measure the same. None is ever NaN. What cannot be measured raises ValueError: another shape, a
target and a render of different shapes, less than 0.1 s, NaN or infinity.

`Distance` gives MSS, SOT and RMS within 1e-3 and about fifteen times as fast, to compare one target with
thousands of renders. `parameter_error` compares patches instead, where the true one is known.
`bootstrap_mean` and `paired_difference` say how far a mean over clips can be trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import librosa
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from synthnb.features.fast import FAINTEST_FRAME, MelSpectrum, Spectrum, transport
from synthnb.features.mel import FAINTEST, TOP_DB
from synthnb.sound import SAMPLE_RATE
from synthnb.space import Note, Parameter, ParameterSpace, Patch

#: A table's columns, and which is better.
METRICS = {"MSS": "lower", "wMFCC": "lower", "SOT": "lower", "RMS": "higher"}

#: Seconds of window and of hop, and mel bands.
MSS_SCALES = ((0.010, 0.005, 32), (0.025, 0.010, 64), (0.100, 0.050, 128))
MFCC_FRAME = (0.050, 0.010)  #: seconds of window, of hop
SOT_FRAME = (0.050, 0.020)
RMS_FRAME = (0.050, 0.025)

#: One unit of each term of `Distance`, a mistake of about the same size: MSS and SOT of a sawtooth against an
#: octave higher, 1 - RMS of a decaying sawtooth against a steady one (both are in tests/test_metrics.py).
UNITS = {"MSS": 6.7, "SOT": 0.0588, "RMS": 0.306}

#: MSS leads: it hears pitch, timbre and envelope, and is what a match is judged by. But it is flat where
#: partials do not overlap, and there SOT slopes towards the right pitch; so does RMS for the envelope.
WEIGHTS = {"MSS": 1.0, "SOT": 0.25, "RMS": 0.25}


def mss(target: np.ndarray, render: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Multi-scale spectral distance, decibels in [0, 80]; 0 is the same, an octave off about 7.

    Mel power spectrograms with Hann windows of 10, 25 and 100 ms (hops 5, 10, 50 ms; 32, 64, 128 bands), in
    decibels below the clip's own loudest cell in any channel, floor at -80; the mean absolute difference at
    each scale; the mean of the three. Level does not matter, except that librosa's floor `FAINTEST` hides the
    quiet cells of a clip whose loudest is under 0.01 (a sine under -40 dBFS).
    """
    target, render = _pair(target, render, sample_rate)
    gaps = []
    for window, hop, bands in MSS_SCALES:
        sizes = {"n_fft": int(window * sample_rate), "hop_length": int(hop * sample_rate), "n_mels": bands}
        mels = [librosa.feature.melspectrogram(y=x, sr=sample_rate, **sizes) for x in (target, render)]
        a, b = (librosa.power_to_db(mel, ref=np.max, top_db=TOP_DB) for mel in mels)
        gaps.append(np.abs(a - b).mean())
    return float(np.mean(gaps))


def wmfcc(target: np.ndarray, render: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Warped MFCC distance, at least 0, no unit; 0 is the same, an octave off about 9.5.

    20 MFCCs (windows of 50 ms, hop 10 ms, 128 mel bands) of each channel, stacked; dynamic time warping where
    two frames cost their mean absolute difference, twice in a diagonal step (dtw-python's `symmetric2`); the
    best path's cost divided by the sum of both lengths. The first coefficient is loudness, so level matters.
    """
    target, render = _pair(target, render, sample_rate)
    window, hop = (int(seconds * sample_rate) for seconds in MFCC_FRAME)
    sizes = {"sr": sample_rate, "n_mfcc": 20, "n_fft": window, "hop_length": hop, "n_mels": 128}
    a, b = (np.concatenate(librosa.feature.mfcc(y=x, **sizes)).T for x in (target, render))
    cost = cdist(a, b, "cityblock") / a.shape[1]
    warped = librosa.sequence.dtw(C=cost, weights_mul=np.array([2.0, 1.0, 1.0]), backtrack=False)
    return float(warped[-1, -1] / sum(cost.shape))


def sot(target: np.ndarray, render: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Spectral optimal transport, share of the spectrum's width in [0, 1]; 0 is the same, an octave off 0.06.

    Channels averaged; magnitude spectra (Hann windows of 50 ms, hop 20 ms), each divided by its sum (at least
    1e-6); the Wasserstein-1 distance of two frames along the linear frequency axis, that is the mean over
    bins of the absolute difference of their cumulative sums; the mean over frames. Level does not matter. A
    silent frame stays zero, and against a sounding one costs what the other's cumulative sum is on average:
    up to 1.
    """
    target, render = _pair(target, render, sample_rate)
    window, hop = (int(seconds * sample_rate) for seconds in SOT_FRAME)
    spectra = (librosa.stft(x.mean(axis=0), n_fft=window, hop_length=hop) for x in (target, render))
    a, b = (_cumulative_shares(np.abs(spectrum)) for spectrum in spectra)
    return float(np.abs(a - b).mean())


def rms_cosine(target: np.ndarray, render: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Cosine similarity of the level envelopes, in [0, 1]; 1 is the same shape at any pitch and level.

    Channels averaged; root mean square of 50 ms every 25 ms; the cosine of the two envelopes. Where one clip
    is silent the script's value is NaN; here it is 0, and 1 if both are.
    """
    target, render = _pair(target, render, sample_rate)
    frame, hop = (int(seconds * sample_rate) for seconds in RMS_FRAME)
    mono = (x.mean(axis=0) for x in (target, render))
    return _cosine(*(librosa.feature.rms(y=x, frame_length=frame, hop_length=hop)[0] for x in mono))


def all_metrics(target: np.ndarray, render: np.ndarray, sample_rate: int = SAMPLE_RATE) -> dict[str, float]:
    """All four, with the keys and the order of `METRICS`; a fifth of a second for 4 s of mono sound."""
    measures = (mss, wmfcc, sot, rms_cosine)
    return {
        name: measure(target, render, sample_rate) for name, measure in zip(METRICS, measures, strict=True)
    }


class Distance:
    """One target, analysed once, against many renders.

        distance = Distance(target)     # (channels, samples)
        distance(renders)               # (batch, channels, samples) -> (batch,), lower is better

    Args:
        target: float `(channels, samples)`, one channel or two.
        sample_rate: Hz, of the target and of all renders.

    Renders are numpy arrays or CPU tensors `(batch, channels, samples)`, as long as the target, with one
    channel or two whatever the target has (mono is the same on both). Every method returns float64
    `(batch,)`. Equal channels are measured once. A mono clip of 4 s takes about 6 ms on one core, where
    `torch.stft` alone would take 15. More cores are best used by threads that share an instance, each with a
    part of the batch and `torch.set_num_threads(1)`. The first use ever compiles for some seconds; numba
    keeps the result.
    """

    def __init__(self, target: np.ndarray, sample_rate: int = SAMPLE_RATE):
        target = _mono_once(_check(target, sample_rate, "the target"))
        self.sample_rate, self.samples = sample_rate, target.shape[1]
        self._mels = [
            MelSpectrum(*self._window_and_hop(window, hop), bands, sample_rate)
            for window, hop, bands in MSS_SCALES
        ]
        self._spectrum = Spectrum(*self._window_and_hop(*SOT_FRAME))
        self._target_mels = [_decibels(mel.power(target)) for mel in self._mels]
        self._target_shares = _cumulative_shares(self._magnitude(target))
        self._target_envelope = self._envelope(target)

    def __call__(self, renders: np.ndarray | torch.Tensor) -> np.ndarray:
        """The ranking distance, 0 or more: MSS, SOT and 1 - RMS in `UNITS`, added up with `WEIGHTS`."""
        mss, sot, rms = (WEIGHTS[name] / UNITS[name] for name in ("MSS", "SOT", "RMS"))
        clips = self._clips(renders)
        return np.array([mss * self._mss(x) + sot * self._sot(x) + rms * (1.0 - self._rms(x)) for x in clips])

    def mss(self, renders: np.ndarray | torch.Tensor) -> np.ndarray:
        """`mss` of every render, within 1e-3."""
        return np.array([self._mss(clip) for clip in self._clips(renders)])

    def sot(self, renders: np.ndarray | torch.Tensor) -> np.ndarray:
        """`sot` of every render, within 1e-3."""
        return np.array([self._sot(clip) for clip in self._clips(renders)])

    def rms(self, renders: np.ndarray | torch.Tensor) -> np.ndarray:
        """`rms_cosine` of every render, within 1e-3."""
        return np.array([self._rms(clip) for clip in self._clips(renders)])

    def _clips(self, renders: np.ndarray | torch.Tensor) -> Iterator[np.ndarray]:
        renders = np.asarray(renders)
        if renders.ndim != 3 or renders.shape[2] != self.samples:
            wanted = f"(batch, channels, {self.samples}), as long as the target"
            raise ValueError(f"the renders have shape {renders.shape}; give {wanted}")
        for i, clip in enumerate(renders):
            yield _mono_once(_check(clip, self.sample_rate, f"render {i}"))

    def _window_and_hop(self, window: float, hop: float) -> tuple[np.ndarray, int]:
        return librosa.filters.get_window("hann", int(window * self.sample_rate)), int(hop * self.sample_rate)

    def _mss(self, clip: np.ndarray) -> float:
        mels = zip(self._target_mels, self._mels, strict=True)
        return float(np.mean([np.abs(target - _decibels(mel.power(clip))).mean() for target, mel in mels]))

    def _sot(self, clip: np.ndarray) -> float:
        return float(transport(self._magnitude(clip), self._target_shares))

    def _magnitude(self, clip: np.ndarray) -> np.ndarray:
        return self._spectrum.magnitude(clip.mean(axis=0, keepdims=True))[0]

    def _rms(self, clip: np.ndarray) -> float:
        return _cosine(self._target_envelope, self._envelope(clip))

    def _envelope(self, clip: np.ndarray) -> np.ndarray:
        """`librosa.feature.rms`. A frame is two hops, and one sample more where rounding makes it so."""
        frame, hop = (int(seconds * self.sample_rate) for seconds in RMS_FRAME)
        frames = 1 + (self.samples + 2 * (frame // 2) - frame) // hop
        padded = np.zeros((frames + 2) * hop, dtype=np.float32)
        used = clip.mean(axis=0)[: len(padded) - frame // 2]
        padded[frame // 2 : frame // 2 + len(used)] = used
        hops = padded.reshape(frames + 2, hop)
        squares = np.einsum("fs,fs->f", hops, hops)
        return np.sqrt((squares[:-2] + squares[1:-1] + (frame - 2 * hop) * hops[2:, 0] ** 2) / frame)


def parameter_error(space: ParameterSpace, a: tuple[Patch, Note], b: tuple[Patch, Note]) -> float:
    """Mean absolute difference of two patches with their notes, in [0, 1]; 0 is the same after the best swap.

    The mean over all parameters of the synth and the note's pitch, start and end: the distance of unit values, and
    0 or 1 for a categorical one. Modules that are interchangeable in `a` (the true patch) are first given to those
    of `b` in the order that costs least, as in synth-setter's `param_mse_best_swap` (#2257), which squares. So it
    is not symmetric where the two have different modules interchangeable, as DX7 algorithms do.

    Raises `SpaceError` if a patch or note does not fit the space.
    """
    (patch, note), (other, played) = a, b
    space.check(patch)
    space.check(other)

    def gaps(patch: Patch, modules: Iterable[str]) -> float:
        return sum(_gap(p, patch[p.name], other[p.name]) for p in space.parameters if p.module in modules)

    modules = {p.module for p in space.parameters}
    sets = space.interchangeable_in(patch)
    moving = [module for blocks in sets for block in blocks for module in block]
    total = sum(_gap(p, getattr(note, p.name), getattr(played, p.name)) for p in space.note_fields)
    if len(moving) > len(set(moving)):  # a swap in one set moves what another set swaps: try them all
        total += min(gaps(swapped, modules) for swapped in _all_swaps(space, patch, sets))
    else:
        total += gaps(patch, modules.difference(moving))
        for blocks in sets:
            cost = np.array([[gaps(space.swap(patch, mine, its), its) for its in blocks] for mine in blocks])
            total += cost[linear_sum_assignment(cost)].sum()
    return float(total / len(list(space)))


def _gap(p: Parameter, a: float | str, b: float | str) -> float:
    gap = abs(p.to_unit(a) - p.to_unit(b))
    return float(gap > 0) if p.kind == "categorical" else gap


def _all_swaps(space: ParameterSpace, patch: Patch, sets: list[list[tuple[str, ...]]]) -> list[Patch]:
    """The patch and all that swaps, one after another, make of it."""
    found, known = [patch], {tuple(patch.values())}
    pairs = [pair for blocks in sets for pair in itertools.combinations(blocks, 2)]
    for reached in found:  # which grows while it is gone through
        for pair in pairs:
            swapped = space.swap(reached, *pair)
            if tuple(swapped.values()) not in known:
                known.add(tuple(swapped.values()))
                found.append(swapped)
    return found


def bootstrap_mean(values: Sequence[float], seed: int = 0, n: int = 10_000) -> tuple[float, float, float]:
    """Mean over clips and its 95 % interval, `(mean, low, high)` in the values' unit.

    Percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13): the
    2.5th and 97.5th percentile of the means of `n` resamples. It covers the choice of clips and nothing else,
    and with fewer than 20 clips is somewhat too narrow. Raises ValueError unless there are values and all are
    finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values are {values}; give a list of finite numbers, one for each clip")
    rng = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // values.size)  # resamples at once: 16 MB, however many clips
    sizes = [(min(rows, n - done), values.size) for done in range(0, n, rows)]
    means = np.concatenate([values[rng.integers(values.size, size=size)].mean(axis=1) for size in sizes])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """`bootstrap_mean` of `a - b`, clip by clip: with 0 outside the interval, the two differ on average.

    Sharper than two intervals side by side, because what makes a clip hard for both drops out of its
    difference. Raises ValueError if the lengths differ.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"a has shape {a.shape} and b {b.shape}; give both for the same clips in the same order"
        )
    return bootstrap_mean(a - b, seed)


def _check(audio: np.ndarray, sample_rate: int, name: str) -> np.ndarray:
    audio = np.asarray(audio)
    if audio.ndim != 2 or len(audio) not in (1, 2) or not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(
            f"{name} is {audio.dtype} {audio.shape}; give float (channels, samples), 1 or 2 channels"
        )
    shortest = int(MSS_SCALES[-1][0] * sample_rate)
    if audio.shape[1] < shortest:
        raise ValueError(f"{name} has {audio.shape[1]} samples; give {shortest} or more, a window of 100 ms")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} holds NaN or infinity; render it again or leave it out")
    return audio.astype(np.float32, copy=False)


def _pair(target: np.ndarray, render: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Both, checked. All four metrics average over channels, so two mono clips need one channel only."""
    target, render = _check(target, sample_rate, "the target"), _check(render, sample_rate, "the render")
    if target.shape != render.shape:
        raise ValueError(
            f"the target has shape {target.shape}, the render {render.shape}; give them the same"
        )
    once = _mono_once(target), _mono_once(render)
    return once if len(once[0]) == len(once[1]) else (target, render)


def _mono_once(audio: np.ndarray) -> np.ndarray:
    return audio[:1] if np.array_equal(audio[0], audio[-1]) else audio


def _decibels(power: np.ndarray) -> np.ndarray:
    """`librosa.power_to_db(ref=np.max)`."""
    decibels = 10 * np.log10(np.maximum(power, FAINTEST, out=power))
    return np.maximum(decibels - decibels.max(), -TOP_DB)


def _cumulative_shares(magnitude: np.ndarray) -> np.ndarray:
    return np.cumsum(magnitude / np.maximum(magnitude.sum(axis=0), FAINTEST_FRAME), axis=0)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return min(1.0, float(a @ b / norms)) if norms else float(not (a.any() or b.any()))
