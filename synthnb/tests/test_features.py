"""The log-mel spectrogram is librosa's, for one clip and a batch."""

import os
import subprocess
import sys

import librosa
import numpy as np
import pytest
import torch

from synthnb.features.mel import FRAMES_PER_CALL, HOP, _power_by_fft, _spectrum, log_mel
from synthnb.sound import SAMPLE_RATE


def by_librosa(audio):
    power = librosa.feature.melspectrogram(
        y=audio, sr=SAMPLE_RATE, n_fft=1102, hop_length=441, window="hamming", n_mels=128
    )
    return librosa.power_to_db(power, ref=np.max)


@pytest.fixture(scope="module")
def clips(synth, patches):
    """Six clips `(2, samples)` of 1 s: DX7 notes on the left, a noise of another level on the right."""
    rng = np.random.default_rng(8)
    audio = np.stack([synth.render(patch, note, 1.0) for patch, note in patches[:6]])
    audio[:, 1] = rng.standard_normal(audio[:, 1].shape) * np.logspace(-3, 0, 6)[:, None]
    return audio


def test_mono_equals_librosa(clips):
    for audio in clips.reshape(-1, 1, clips.shape[-1]):
        mel = log_mel(torch.from_numpy(audio)).numpy()
        assert mel.shape == (1, 128, 101) and mel.dtype == np.float32
        np.testing.assert_allclose(mel, by_librosa(audio), atol=0.01)


def test_stereo_equals_librosa_with_one_reference_for_both_channels(clips):
    for audio in clips:
        mel = log_mel(torch.from_numpy(audio)).numpy()
        np.testing.assert_allclose(mel, by_librosa(audio), atol=0.01)
        assert mel.max() == pytest.approx(0, abs=1e-5) and mel.min() >= -80


@pytest.mark.parametrize("samples", [44_100, 44_099, 44_101, 700, 100])
def test_any_length_equals_librosa(samples):
    audio = np.random.default_rng(9).standard_normal((1, samples)).astype(np.float32)
    mel = log_mel(torch.from_numpy(audio)).numpy()
    assert mel.shape == (1, 128, 1 + samples // HOP)
    expected = by_librosa(np.pad(audio, ((0, 0), (0, max(0, 1102 - samples)))))[..., : mel.shape[-1]]
    if samples > 1102:
        expected = by_librosa(audio)
        np.testing.assert_allclose(mel, expected, atol=0.01)
    assert np.isfinite(mel).all()


def test_a_clip_of_4_seconds_has_401_frames():
    assert log_mel(torch.zeros(3, 1, 4 * SAMPLE_RATE)).shape == (3, 1, 128, 401)


def test_a_batch_equals_single_clips(clips):
    audio = torch.from_numpy(clips)
    batch = log_mel(audio)
    assert batch.shape == (6, 2, 128, 101)
    for one, mel in zip(audio, batch):
        torch.testing.assert_close(log_mel(one), mel, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_mel(audio.reshape(2, 3, 2, -1)), batch.reshape(2, 3, 2, 128, 101))


def test_a_batch_changes_no_bit_of_a_clip(clips):
    audio = torch.from_numpy(clips[:, :1])
    single = torch.stack([log_mel(one) for one in audio])
    for count in (2, 4, 6):
        assert torch.equal(torch.cat([log_mel(part) for part in audio.split(count)]), single)


@pytest.mark.parametrize("samples", [100, 22_050, 44_100])
def test_processor_and_graphics_card_agree(clips, samples):
    audio = torch.from_numpy(clips[..., -samples:].reshape(12, -1))
    fast, by_fft = (
        torch.from_numpy(_spectrum().power(audio.numpy())),
        _power_by_fft(audio),
    )  # the latter runs anywhere
    assert fast.shape == by_fft.shape == (12, 128, 1 + samples // HOP)
    torch.testing.assert_close(fast, by_fft, rtol=1e-3, atol=1e-9 * float(by_fft.max()))


def test_silence_before_and_after_a_sound_changes_nothing_else(clips):
    note, gap = torch.from_numpy(clips[0, :1]), 160 * HOP  # longer than a block
    padded = torch.nn.functional.pad(note, (gap, gap))
    mel = log_mel(padded)
    assert (mel[..., :158] == -80).all() and (mel[..., -158:] == -80).all()
    torch.testing.assert_close(mel[..., 160:261], log_mel(note), rtol=0, atol=0.01)
    for start in (gap, -1):  # a block with a single sample is not silent
        click = torch.zeros_like(padded)
        click[0, start] = 1e-3
        assert log_mel(click).max() == 0


def test_a_batch_larger_than_one_call_equals_its_parts():
    samples = 2205
    count = 2 * FRAMES_PER_CALL * HOP // samples + 3
    audio = torch.randn(count, 1, samples, generator=torch.Generator().manual_seed(0))
    mel = log_mel(audio)
    for i in (0, count // 2, count - 1):
        torch.testing.assert_close(mel[i], log_mel(audio[i]), rtol=0, atol=1e-4)


def test_silence_is_80_decibels_down(clips):
    audio = torch.from_numpy(clips[:2].copy())
    audio[0] = 0
    mel = log_mel(audio)
    assert (mel[0] == -80).all()
    torch.testing.assert_close(mel[1], log_mel(audio[1]), rtol=0, atol=1e-4)
    assert (log_mel(torch.zeros(1, 4410)) == -80).all()


def test_a_silent_channel_beside_a_loud_one_is_80_decibels_down(clips):
    audio = torch.from_numpy(clips[5].copy())
    audio[0] = 0
    mel = log_mel(audio)
    assert (mel[0] == -80).all() and mel[1].max() == 0


def test_level_does_not_matter(clips):
    audio = torch.from_numpy(clips[:, 1:])[5]  # noise of full scale
    torch.testing.assert_close(log_mel(audio), log_mel(0.05 * audio), rtol=0, atol=0.01)
    assert log_mel(audio).max() == 0


def test_frames_show_when_and_bands_what():
    time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    low, high = (torch.sin(2 * torch.pi * f * time) * (time > 0.5) for f in (200.0, 5000.0))
    mel = log_mel(torch.stack([low, high])[:, None])
    assert (mel[..., :48] < -40).all()
    loudest = mel[:, 0, :, 75].argmax(dim=-1)
    assert loudest[0] < 15 < 60 < loudest[1]


#: What numba finds in a container: neither the folder of the code nor the home can be written.
READ_ONLY = """
import os
from numba.core import caching
os.access = lambda *_: False
def fail(*_):
    raise OSError("read-only file system")
for name, locator in vars(caching).items():
    if name.endswith(("InTreeCacheLocator", "UserWideCacheLocator")):
        locator.ensure_cache_path = fail
from synthnb.metrics import Distance, all_metrics
import numpy as np
sound = np.random.default_rng(0).normal(size=(1, 4410)).astype(np.float32)
print(Distance(sound)(sound[None]), all_metrics(sound, sound), os.environ["NUMBA_CACHE_DIR"])
"""


def test_a_read_only_installation_works(monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    done = subprocess.run([sys.executable, "-c", READ_ONLY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(done.stdout.split()[-1])  # nothing is left behind
