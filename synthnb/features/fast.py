"""Fast spectra on a CPU: `librosa.stft` and its mel spectrogram by matrix products instead of an FFT.

Used by `metrics.Distance`, a whole one of which it makes two to three times as fast as on `scipy.fft`, and by
`features.log_mel`.
"""

from __future__ import annotations

import atexit
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import librosa
import numba
import numpy as np
import torch

FRAMES_PER_BLOCK = 136  # done at once, in the processor's cache: a third of a clip of 4 s in hops of 10 ms
FAINTEST_FRAME = 1e-6  #: least sum by which a frame's magnitudes are divided


class Spectrum:
    """`librosa.stft` (centred, zeros around) by two matrix products instead of an FFT.

    The windows are 441, 1102, 2205 and 4410 samples, which FFTs are slow at (1102 = 2 * 19 * 29). With p and
    q coprime, taking sample (q i + p j) mod pq as (i, j) and bin k as (k mod p, k mod q) makes a transform of
    pq samples one of p by q in two dimensions (Good 1958). Along each, cosines meet only the even part of the
    samples and sines only the odd part, so the samples are folded into those first, and what remains are
    products with small real matrices. Frames lie side by side in the last axis, so that every other step is a
    plain loop over frames. A channel's spectrum is the same to the bit beside any other.

    Args:
        window: `(size,)`.
        hop: samples from frame to frame.
    """

    def __init__(self, window: np.ndarray, hop: int):
        self._window, self._size, self._hop = window.astype(np.float32), len(window), hop
        p, q = _coprime_factors(self._size)
        i, j = np.meshgrid(np.arange(p // 2 + 1), np.arange(q // 2 + 1), indexing="ij")
        self._folded = np.stack([(q * a + p * b) % self._size for a in (i, -i) for b in (j, -j)], axis=-1)
        self._along_p = _cosines_and_sines(p)
        self._along_q = _cosines_and_sines(q).repeat(2 * (p // 2 + 1), 1, 1)
        # A real signal's bins (a, b) and (-a, -b) are conjugate, so a is taken from the half that there is;
        # and so is b, by the sign of the sine.
        k = np.arange(self._size // 2 + 1)
        conjugate = np.where(k % p > p // 2, -1, 1)
        a, b = conjugate * k % p, conjugate * k % q
        sign = np.where(b > q // 2, -1, 1)
        cell = np.arange(2 * i.size * 2).reshape(2, p // 2 + 1, 2, q // 2 + 1)
        self._cells = cell[:, a, :, sign * b % q].reshape(len(k), 4)
        self._sign = sign.astype(np.float32)

    def frames(self, samples: int) -> int:
        return 1 + (samples + 2 * (self._size // 2) - self._size) // self._hop

    def _transform(self, audio: np.ndarray) -> Iterator[tuple[int, slice, np.ndarray]]:
        """Blocks of frames that are not silent: channel, frames, `(cells, frames or more)`; `_cells` has each bin's."""
        frames = self.frames(audio.shape[1])
        length = 8 * math.ceil(frames / math.ceil(frames / FRAMES_PER_BLOCK) / 8)  # eight numbers go at once
        columns = length + (self._size - 1) // self._hop
        # All blocks use the same memory: new memory would cost as much time as the work.
        combed = np.empty((self._hop, columns), dtype=np.float32)
        p, q = self._folded.shape[:2]
        one, other = torch.empty(2, 4 * p * q, length)
        folded, cells = one.view(2, p, 2, q, length).numpy(), one.numpy()
        along_q = one.view(-1, q, length), other.view(-1, q, length)
        along_p = other.view(2, p, -1), one.view(2, p, -1)
        for channel, first in itertools.product(range(len(audio)), range(0, frames, length)):
            samples = _cut(audio[channel], first * self._hop - self._size // 2, columns * self._hop)
            if not (samples[::100].any() or samples.any()):  # the first is quick, and mostly enough
                continue
            combed[:] = samples.reshape(columns, self._hop).T
            _fold(combed, self._folded, self._window, folded)
            torch.bmm(self._along_q, along_q[0], out=along_q[1])
            torch.bmm(self._along_p, along_p[0], out=along_p[1])
            yield channel, slice(first, min(first + length, frames)), cells

    def magnitude(self, audio: np.ndarray) -> np.ndarray:
        """`(channels, samples)` to float32 `(channels, bins, frames)`."""
        magnitude = np.zeros((len(audio), len(self._cells), self.frames(audio.shape[1])), dtype=np.float32)
        for channel, block, cells in self._transform(audio):
            part = np.empty((len(self._cells), cells.shape[1]), dtype=np.float32)  # in one piece, for speed
            _magnitude(cells, self._cells, self._sign, part)
            magnitude[channel, :, block] = part[:, : block.stop - block.start]
        return magnitude


class MelSpectrum(Spectrum):
    """The power of `Spectrum` in mel bands (Slaney's, librosa's default)."""

    def __init__(self, window: np.ndarray, hop: int, bands: int, sample_rate: int):
        super().__init__(window, hop)
        filters = librosa.filters.mel(sr=sample_rate, n_fft=len(window), n_mels=bands)
        # A bin lies under two triangles at most, and these are neighbours.
        self._lower = np.minimum((filters > 0).argmax(axis=0), bands - 2)
        self._weights = np.take_along_axis(filters, np.stack([self._lower, self._lower + 1]), axis=0)
        self._bands = bands

    def power(self, audio: np.ndarray) -> np.ndarray:
        """`(channels, samples)` to float32 `(channels, bands, frames)`."""
        power = np.zeros((len(audio), self._bands, self.frames(audio.shape[1])), dtype=np.float32)
        for channel, block, cells in self._transform(audio):
            part = np.zeros((self._bands, cells.shape[1]), dtype=np.float32)
            _add_power(cells, self._cells, self._sign, self._lower, self._weights, part)
            power[channel, :, block] = part[:, : block.stop - block.start]
        return power


def _cut(channel: np.ndarray, start: int, length: int) -> np.ndarray:
    """Samples `start` to `start + length`, zeros where there are none."""
    inside = channel[max(start, 0) : start + length]
    if len(inside) == length:
        return inside
    padded = np.zeros(length, dtype=np.float32)
    padded[max(-start, 0) :][: len(inside)] = inside
    return padded


def _coprime_factors(size: int) -> tuple[int, int]:
    """(p, q) with p q = size, p <= q, as equal as they can be without a common factor."""
    return next(
        (p, size // p)
        for p in range(math.isqrt(size), 0, -1)
        if size % p == 0 and math.gcd(p, size // p) == 1
    )


def _cosines_and_sines(size: int) -> torch.Tensor:
    """`(2, half, half)`: the transforms of the folded even and odd part of a signal, half = size // 2 + 1."""
    k = np.arange(size // 2 + 1)
    angle = 2 * np.pi / size * np.outer(k, k)
    once = np.where(-k % size == k, 0.5, 1.0)  # folded onto itself, a sample counts twice
    return torch.tensor(np.stack([np.cos(angle) * once, np.sin(angle) * once]), dtype=torch.float32)


def _keep_compiled() -> None:
    """Numba keeps what it compiles, librosa's too, beside the code or at home; if neither can be written, for a run."""
    beside = (Path(module).parent for module in (__file__, librosa.__file__))
    if not (
        numba.config.CACHE_DIR
        or os.access(Path("~").expanduser(), os.W_OK)
        or all(os.access(folder, os.W_OK) for folder in beside)
    ):
        numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="synthnb-")
        atexit.register(shutil.rmtree, numba.config.CACHE_DIR, ignore_errors=True)


_keep_compiled()
compiled = numba.njit(fastmath=True, nogil=True, cache=True)


@compiled
def _fold(combed, samples, window, folded):
    """Sample n of frame f, in row n mod hop and column f + n // hop, windowed, in even and odd parts."""
    hop = len(combed)
    for i in range(samples.shape[0]):
        for j in range(samples.shape[1]):
            a, b, c, d = samples[i, j]
            wa, wb, wc, wd = window[a], window[b], window[c], window[d]
            row_a, row_b = combed[a % hop, a // hop :], combed[b % hop, b // hop :]
            row_c, row_d = combed[c % hop, c // hop :], combed[d % hop, d // hop :]
            even_even, even_odd = folded[0, i, 0, j], folded[0, i, 1, j]
            odd_even, odd_odd = folded[1, i, 0, j], folded[1, i, 1, j]
            for f in range(len(even_even)):
                xa, xb, xc, xd = wa * row_a[f], wb * row_b[f], wc * row_c[f], wd * row_d[f]
                even_even[f] = (xa + xb) + (xc + xd)
                even_odd[f] = (xa - xb) + (xc - xd)
                odd_even[f] = (xa + xb) - (xc + xd)
                odd_odd[f] = (xa - xb) - (xc - xd)


@compiled
def _magnitude(cells, bins, sign, magnitude):
    for k in range(len(bins)):
        a, b, c, d = bins[k]
        for f in range(cells.shape[1]):
            power = (cells[a, f] - sign[k] * cells[d, f]) ** 2 + (cells[c, f] + sign[k] * cells[b, f]) ** 2
            magnitude[k, f] = np.sqrt(power)


@compiled
def _add_power(cells, bins, sign, lower, weights, mel):
    for k in range(len(bins)):
        a, b, c, d = bins[k]
        low = lower[k]
        for f in range(cells.shape[1]):
            power = (cells[a, f] - sign[k] * cells[d, f]) ** 2 + (cells[c, f] + sign[k] * cells[b, f]) ** 2
            mel[low, f] += weights[0, k] * power
            mel[low + 1, f] += weights[1, k] * power


@compiled
def transport(magnitude, target_shares):
    """SOT: mean of |cumulative shares of `magnitude` - `target_shares`|, both `(bins, frames)`."""
    bins, frames = magnitude.shape
    scale = np.zeros(frames, np.float32)
    share, moved = np.zeros_like(scale), np.zeros_like(scale)
    for k in range(bins):
        for f in range(frames):
            scale[f] += magnitude[k, f]
    for f in range(frames):
        scale[f] = 1 / max(scale[f], FAINTEST_FRAME)
    for k in range(bins):
        for f in range(frames):
            share[f] += magnitude[k, f] * scale[f]
            moved[f] += abs(share[f] - target_shares[k, f])
    return moved.mean() / bins
