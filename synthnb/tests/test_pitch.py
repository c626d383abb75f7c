"""A note's key is found to the octave and its tuning to some cents; what has no pitch is said to have none."""

from pathlib import Path

import numpy as np
import pytest

from synthnb.pitch import Pitch, find_pitch
from synthnb.sound import SAMPLE_RATE, read_sound

EXAMPLES = Path(__file__).parents[2] / "datasets" / "examples"
SAW = {partial: 1 / partial for partial in range(1, 21)}
SPECTRA = {
    "sine": {1: 1.0},
    "saw": SAW,
    "square": {partial: 1 / partial for partial in range(1, 21, 2)},
    "weak fundamental": SAW | {1: 0.03},
    "no fundamental": {partial: 1 / partial for partial in range(2, 13)},
    "strong octave": {1: 0.3, 2: 1.0, 3: 0.2, 4: 0.4, 5: 0.1},
    "pulse": dict.fromkeys(range(1, 21), 1.0),
    "stiff string": {n * np.sqrt((1 + 3e-4 * n * n) / (1 + 3e-4)): 1 / n for n in range(1, 13)},
    "bar": {1: 1.0, 2.756: 0.7, 5.404: 0.4, 8.93: 0.2},
}


def hz(key):
    return 440 * 2 ** ((key - 69) / 12)


def tone(frequency, spectrum=SAW, seconds=1.5):
    """A decaying note `(1, samples)`; `frequency` may be an array, one for each sample."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, time.shape)) / SAMPLE_RATE
    partials = {n: level for n, level in spectrum.items() if n * np.max(frequency) < 20_000}
    audio = sum(level * np.sin(n * phase + 7 * n) for n, level in partials.items())
    return (audio * np.exp(-2 * time) * np.minimum(1, time / 0.005) / 2)[None].astype(np.float32)


def noise(decay, seconds=1.0, seed=0):
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (np.random.default_rng(seed).normal(0, 0.2, (1, time.size)) * np.exp(-decay * time)).astype(
        np.float32
    )


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_keys_are_right_to_the_octave_and_tuned_to_3_cents(spectrum):
    top = 105 if spectrum in ("sine", "saw", "square") else 87  # above, few partials are left
    for i, key in enumerate(range(27, top, 9)):
        cents = (-40, -13, 0, 8, 31)[i % 5]
        pitch = find_pitch(tone(hz(key + cents / 100), SPECTRA[spectrum]))
        assert pitch.key == key and pitch.cents == pytest.approx(cents, abs=3), (key, pitch)


@pytest.mark.parametrize("key", [21, 108])
def test_the_range_is_a_pianos(key):
    assert find_pitch(tone(hz(key))).key == key


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("gm_*.flac")), ids=lambda path: path.stem)
def test_the_key_of_an_instrument(path):
    pitch = find_pitch(read_sound(path))
    assert pitch.key == int(path.stem[-3:]) and abs(pitch.cents) < 20


@pytest.mark.parametrize("key", [33, 48, 63, 78])
def test_a_pitch_that_moves_is_where_it_stays(key):
    time = np.arange(round(1.5 * SAMPLE_RATE)) / SAMPLE_RATE
    vibrato = find_pitch(tone(hz(key + 0.5 * np.sin(2 * np.pi * 5.5 * time))))
    scoop = find_pitch(tone(hz(key - 2 * np.exp(-time / 0.05))))
    assert vibrato.cents_from(key) == pytest.approx(0, abs=8)
    assert scoop.cents_from(key) == pytest.approx(0, abs=8)


@pytest.mark.parametrize("key", [40, 60, 80, 100])
def test_short_detuned_noisy_and_late_notes(key):
    note = tone(hz(key))
    chorus = sum(tone(hz(key + cents / 100)) for cents in (-12, -4, 3, 13))
    for audio, tolerance in (
        (tone(hz(key), seconds=0.1), 5),
        (chorus, 8),
        (note + 0.5 * noise(2, 1.5) * note.std(), 5),  # 20 dB down
        (np.pad(note, ((0, 0), (SAMPLE_RATE, SAMPLE_RATE))), 3),
        (1e-3 * note, 3),
    ):
        assert find_pitch(audio).cents_from(key) == pytest.approx(0, abs=tolerance)


def test_channels_do_not_cancel():
    note = tone(hz(50))
    assert find_pitch(np.concatenate([note, -note])) == find_pitch(np.concatenate([note, note]))
    assert find_pitch(np.concatenate([note, 0 * note])).key == 50


def test_noise_clicks_and_silence_are_unpitched():
    click = np.zeros((1, SAMPLE_RATE), np.float32)
    for audio in (np.zeros((2, SAMPLE_RATE), np.float32), click, *(noise(d) for d in (0, 3, 30))):
        assert find_pitch(audio) is None
    click[0, 1000] = 1.0
    assert find_pitch(click) is None
    hat = noise(20)
    hat[:, 1:] -= hat[:, :-1].copy()
    assert find_pitch(hat) is None


def test_a_pitch_tells_its_key_and_how_far_it_is_from_any():
    pitch = Pitch(hz(57.3), 0.5)
    assert pitch.key == 57 and pitch.cents == pytest.approx(30)
    assert pitch.cents_from(69) == pytest.approx(-1170) and pitch.cents_from(45) == pytest.approx(1230)
    assert Pitch(440.0, 1.0).key == 69
