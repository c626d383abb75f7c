"""What the model hears: the log-mel spectrogram, the same for one clip and a batch, on CPU and GPU."""

from __future__ import annotations

import functools
import math

import librosa
import torch

from synthnb.features.fast import MelSpectrum
from synthnb.sound import SAMPLE_RATE

WINDOW, HOP, BANDS = 1102, 441, 128  # 25 ms and 10 ms, rounded down, as in the synth-permutations datasets
TOP_DB = 80.0
FAINTEST = 1e-10  #: power at which decibels stop falling (librosa's `amin`)
FRAMES_PER_CALL = 8192  # spectra held at once by a GPU: 20 clips of 4 s, 70 MB


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
    on_cpu = audio.device.type == "cpu"
    power = torch.from_numpy(_spectrum().power(clips.numpy())) if on_cpu else _power_by_fft(clips)
    power = power.reshape(*audio.shape[:-1], *power.shape[-2:])
    peak = power.amax(dim=(-3, -2, -1), keepdim=True)
    # librosa would give silence 0 dB, its own maximum. (Binary logarithms are the fastest.)
    reference = torch.where(peak > 0, peak.clamp_min(FAINTEST).log2(), torch.inf)
    return power.clamp_min(FAINTEST).log2_().sub_(reference).mul_(10 * math.log10(2)).clamp_(-TOP_DB, 0.0)


def coarse(mel: torch.Tensor) -> torch.Tensor:
    """Averages over 2 bands and 4 frames of a spectrogram from `log_mel`: what the encoder looks at.

    Args:
        mel: `(batch, channels, 128, frames)` in dB.

    Returns:
        `(batch, channels, 64, frames // 4)`.
    """
    return torch.nn.functional.avg_pool2d(mel, (2, 4))


@functools.cache
def _spectrum() -> MelSpectrum:
    return MelSpectrum(torch.hamming_window(WINDOW).numpy(), HOP, BANDS, SAMPLE_RATE)


@functools.lru_cache(maxsize=4)
def _window_and_filters(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Hamming window `(WINDOW,)` and mel filters `(bins, BANDS)`."""
    filters = torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=BANDS))
    return torch.hamming_window(WINDOW, device=device), filters.T.contiguous().to(device)


def _power_by_fft(clips: torch.Tensor) -> torch.Tensor:
    """What `_spectrum` does a third as fast, but on any device: `(clips, samples)` to `(clips, BANDS, frames)`."""
    window, filters = _window_and_filters(clips.device)
    parts = []
    for part in clips.split(max(1, FRAMES_PER_CALL * HOP // clips.shape[-1])):
        padded = torch.nn.functional.pad(part, (WINDOW // 2, WINDOW // 2))
        spectrum = torch.fft.rfft(padded.unfold(-1, WINDOW, HOP) * window)
        parts.append((torch.view_as_real(spectrum).square().sum(dim=-1) @ filters).transpose(-1, -2))
    return torch.cat(parts)
