"""What the model hears: the log-mel spectrogram, the same for one clip and a batch, on CPU and GPU."""

from __future__ import annotations

import functools
import math

import librosa
import numba
import numpy as np
import torch

from synthnb.features.fast import MelSpectrum, _fold
from synthnb.sound import SAMPLE_RATE

WINDOW, HOP, BANDS = 1102, 441, 128  # 25 ms and 10 ms, rounded down, as in the synth-permutations datasets
TOP_DB = 80.0
FRAMES_PER_CALL = 8192  # spectra held at once by a GPU: 20 clips of 4 s, 70 MB
FRAMES_PER_BLOCK = 136  # and by a CPU, in its cache: a third of a clip of 4 s


def log_mel(audio: torch.Tensor) -> torch.Tensor:
    """Log-mel spectrogram in decibels below the clip's own maximum, so that level does not matter.

    Power spectrogram (Hamming window of 25 ms, hop 10 ms, zero-padded at both ends), 128 mel bands up to 22,050 Hz,
    decibels relative to the loudest cell of all channels, floor at -80. Equals `librosa.feature.melspectrogram` and
    `power_to_db(ref=np.max)`. Silence is -80 throughout.

    Args:
        audio: float32 `(..., channels, samples)` at 44.1 kHz.

    Returns:
        float32 `(..., channels, 128, 1 + samples // 441)` in [-80, 0].
    """
    clips = audio.reshape(-1, audio.shape[-1])
    power = _mel_power()(clips.numpy()) if audio.device.type == "cpu" else _power_by_fft(clips)
    power = power.reshape(*audio.shape[:-1], *power.shape[-2:])
    peak = power.amax(dim=(-3, -2, -1), keepdim=True)
    # librosa would give silence 0 dB, its own maximum. (Binary logarithms are the fastest.)
    reference = torch.where(peak > 0, peak.clamp_min(1e-10).log2(), torch.inf)
    return power.clamp_min(1e-10).log2_().sub_(reference).mul_(10 * math.log10(2)).clamp_(-TOP_DB, 0.0)


def coarse(mel: torch.Tensor) -> torch.Tensor:
    """Averages over 2 bands and 4 frames of a spectrogram from `log_mel`: what the encoder looks at.

    Args:
        mel: `(batch, channels, 128, frames)` in dB.

    Returns:
        `(batch, channels, 64, frames // 4)`.
    """
    return torch.nn.functional.avg_pool2d(mel, (2, 4))


@functools.lru_cache(maxsize=4)
def _window_and_filters(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Hamming window `(WINDOW,)` and mel filters `(bins, BANDS)` (Slaney's, librosa's default)."""
    filters = torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=BANDS))
    return torch.hamming_window(WINDOW, device=device), filters.T.contiguous().to(device)


def _power_by_fft(clips: torch.Tensor) -> torch.Tensor:
    """Mel power of `(clips, samples)`: `(clips, BANDS, frames)`."""
    window, filters = _window_and_filters(clips.device)
    parts = []
    for part in clips.split(max(1, FRAMES_PER_CALL * HOP // clips.shape[-1])):
        padded = torch.nn.functional.pad(part, (WINDOW // 2, WINDOW // 2))
        spectrum = torch.fft.rfft(padded.unfold(-1, WINDOW, HOP) * window)
        parts.append((torch.view_as_real(spectrum).square().sum(dim=-1) @ filters).transpose(-1, -2))
    return torch.cat(parts)


class _MelPower(MelSpectrum):
    """The same on a CPU, three times as fast: by `spectra`'s matrix products, block by block in the cache.

    Silent blocks are skipped. A clip's power is the same to the bit in any batch.
    """

    def __init__(self):
        super().__init__(0.025, 0.01, BANDS, WINDOW, WINDOW // 2, SAMPLE_RATE)
        self._window = torch.hamming_window(WINDOW).numpy()

    def __call__(self, clips: np.ndarray) -> torch.Tensor:
        """`(clips, samples)` to `(clips, BANDS, frames)`."""
        frames = 1 + clips.shape[1] // HOP
        blocks = math.ceil(frames / FRAMES_PER_BLOCK)
        length = 8 * math.ceil(frames / blocks / 8)  # the processor takes eight numbers at once
        # All blocks use the same memory: new memory would cost as much time as the work.
        padded = np.zeros((blocks * length + 2) * HOP, dtype=np.float32)
        combed = np.empty((HOP, 1, length + 2), dtype=np.float32)
        p, q = self._folded.shape[:2]
        one, other = torch.empty(2, 4 * p * q, length)
        folded, cells = one.view(2, p, 2, q, 1, length).numpy(), one.numpy()
        along_q = one.view(-1, q, length), other.view(-1, q, length)
        along_p = other.view(2, p, -1), one.view(2, p, -1)
        mel = np.empty((BANDS, length), dtype=np.float32)
        power = np.zeros((len(clips), BANDS, frames), dtype=np.float32)
        for clip, out in zip(clips, power):
            padded[WINDOW // 2 : WINDOW // 2 + len(clip)] = clip
            for first in range(0, frames, length):
                samples = padded[first * HOP : (first + length + 2) * HOP]
                if not (samples[::100].any() or samples.any()):  # the first is quick, and mostly enough
                    continue
                combed[:, 0] = samples.reshape(-1, HOP).T
                _fold(combed, self._folded, self._window, folded)
                torch.bmm(self._along_q, along_q[0], out=along_q[1])
                torch.bmm(self._along_p, along_p[0], out=along_p[1])
                mel[:] = 0
                _add_power(cells, self._cells, self._sign, self._lower, self._weights, mel)
                out[:, first : first + length] = mel[:, : frames - first]
        return torch.from_numpy(power)


_mel_power = functools.cache(_MelPower)


@numba.njit(fastmath=True, nogil=True, cache=True)
def _add_power(cells, bins, sign, lower, weights, mel):
    """`spectra._mel_power` in other words, of which the compiler makes vector instructions: three times as fast."""
    for k in range(len(bins)):
        a, b, c, d = bins[k]
        low = lower[k]
        for f in range(mel.shape[1]):
            power = (cells[a, f] - sign[k] * cells[d, f]) ** 2 + (cells[c, f] + sign[k] * cells[b, f]) ** 2
            mel[low, f] += weights[0, k] * power
            mel[low + 1, f] += weights[1, k] * power
