"""How sounds differ, in words: what a sound designer would turn next.

    words(target, render)     # ["30 cents sharp", "rings longer", "darker"]; [] is very close
    contrast(renders)         # for each, what sets it apart from the others: [["darker"], ["faster attack"], []]

Clips are float `(channels, samples)` at 44.1 kHz, and how loud they are as a whole doesn't matter. A difference is said
from where listeners notice it in music on (Moore, "An Introduction to the Psychology of Hearing": pitch 5 cents; timbre
studies by Grey and by McAdams: the attack's time by half, the centre of the spectrum by an ERB), the greatest first, in
steps of that size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import librosa
import numpy as np

from synthnb.features.fast import Spectrum
from synthnb.metrics import SOT_FRAME
from synthnb.pitch import find_pitch
from synthnb.search import hearing
from synthnb.sound import SAMPLE_RATE

#: Feature: the least difference that is said, and what it is called when lower or higher.
SAID = {
    "brightness": (0.7, "darker", "brighter"),  # ERB
    "attack": (0.7, "faster attack", "slower attack"),  # doublings
    "start": (0.02, "starts early", "starts late"),  # seconds
    "length": (0.3, "shorter", "rings longer"),  # doublings
    "decay": (0.3, "decays faster", "decays slower"),  # doublings
    "noise": (6.0, "less noise", "more noise"),  # dB
    "vibrato": (15.0, "less vibrato", "more vibrato"),  # cents
    "tremolo": (1.5, "less tremolo", "more tremolo"),  # dB
}
SHORTEST = 0.02  # seconds: shorter attacks are all at once
IN_TUNE = 5.0  # cents, the least that is said
AN_INTERVAL = 60.0  # cents, from which on it is semitones that are counted
MINDED = 4.0  # steps of pitch weigh as one of another feature; a semitone leads, whatever else is wrong
NO_PITCH = 20.0  # steps that a missing pitch weighs
QUIETEST = -40.0  # dB: noise that is weaker isn't heard
LONGEST = 3  # words for one of several candidates


def words(target: np.ndarray, render: np.ndarray) -> list[str]:
    """How `render` differs from `target`, what a listener would mind most first; empty if that is nothing."""
    asked, given = _features(target), _features(render)
    return _say({name: given[name] - asked[name] for name in asked}, given["pitch"], asked["pitch"])


def contrast(renders: Sequence[np.ndarray]) -> list[list[str]]:
    """What sets each of several sounds apart from their median: up to three words each, none for an average one."""
    features = [_features(render) for render in renders]
    if not features:
        return []
    pitched = [f["pitch"] for f in features if not np.isnan(f["pitch"])]
    middle = {name: np.median([f[name] for f in features]) for name in features[0]}
    # With an even count, the median of pitches would lie between two and be nobody's.
    middle["pitch"] = (
        np.sort(pitched)[(len(pitched) - 1) // 2] if 2 * len(pitched) > len(features) else np.nan
    )
    return [
        _say({name: f[name] - middle[name] for name in f}, f["pitch"], middle["pitch"])[:LONGEST]
        for f in features
    ]


def _say(gaps: dict[str, float], pitch: float, asked: float) -> list[str]:
    said = []
    for name, (step, lower, higher) in SAID.items():
        if abs(gaps[name]) >= step:
            said.append((abs(gaps[name]) / step, lower if gaps[name] < 0 else higher))
    if np.isnan(pitch) != np.isnan(asked):
        said.append((NO_PITCH, "no clear pitch" if np.isnan(pitch) else "a clear pitch"))
    elif abs(gaps["pitch"]) >= IN_TUNE:  # which isn't if both are unpitched
        said.append((abs(gaps["pitch"]) / IN_TUNE / MINDED + 1, _interval(gaps["pitch"])))
    return [text for _, text in sorted(said, key=lambda each: -each[0])]


def _interval(cents: float) -> str:
    if abs(cents) < AN_INTERVAL:
        return f"{abs(cents):.0f} cents {'sharp' if cents > 0 else 'flat'}"
    octaves, semitones = round(abs(cents) / 1200), round(abs(cents) / 100)
    if abs(abs(cents) - 1200 * octaves) < AN_INTERVAL:
        named = "an octave" if octaves == 1 else f"{octaves} octaves"
    else:
        named = "a semitone" if semitones == 1 else f"{semitones} semitones"
    return f"{named} {'high' if cents > 0 else 'low'}"


def _features(clip: np.ndarray) -> dict[str, float]:
    """What words are about, in units whose differences are heard; the pitch in cents, NaN if there is none."""
    clip = np.asarray(clip, dtype=np.float32)
    energy, magnitude = hearing.energies(clip), _spectrum().magnitude(clip.mean(axis=0, keepdims=True))[0]
    loud = hearing.sounding(energy)
    starts = np.linspace(*hearing.span(loud), hearing.SPECTRA).astype(int)
    power, _ = hearing.spectra(clip, starts)
    pitch = find_pitch(clip)
    whole = hearing.sounding(energy, 40.0)
    vibrato = (
        hearing.vibrato(magnitude, hearing.steady(loud), hearing.strongest(power)).max() if pitch else 0.0
    )
    return {
        "brightness": hearing.brightness(magnitude, SAMPLE_RATE / 2 / (len(magnitude) - 1)),
        "attack": float(np.log2(SHORTEST + hearing.attack(energy))),
        "start": whole.start * hearing.HOP / SAMPLE_RATE,
        "length": float(np.log2(whole.stop - whole.start)),
        "decay": float(np.log2(SHORTEST + hearing.lasting(energy))),
        "noise": max(QUIETEST, hearing.noisiness(power)),
        "vibrato": float(vibrato),
        "tremolo": float(hearing.tremolo(energy, hearing.steady(loud)).max()),
        "pitch": pitch.cents_from(0) if pitch else np.nan,
    }


@functools.cache
def _spectrum() -> Spectrum:
    window, hop = (round(seconds * SAMPLE_RATE) for seconds in SOT_FRAME)
    return Spectrum(librosa.filters.get_window("hann", window), hop)
