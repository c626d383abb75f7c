"""What is done to a sound so that a listener minds: each makes of audio `(channels, samples)` another one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from synthnb.sound import SAMPLE_RATE

Flaw = Callable[[np.ndarray], np.ndarray]


def shelf(decibels: float, hz: float) -> Flaw:
    """Partials above `hz` louder by so many dB, with a slope an octave wide."""

    def flaw(audio):
        samples = 2 * audio.shape[1]  # zeros, so that the end doesn't reach the start
        octaves = np.log2(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE).clip(1) / hz)
        spectrum = np.fft.rfft(audio, samples) * 10 ** (decibels / 20 * np.clip(octaves + 0.5, 0, 1))
        changed = np.fft.irfft(spectrum)[:, : audio.shape[1]]
        return np.where(_smooth(audio**2) > 0, changed, 0)  # the ripple of a filter is no sound of a synth

    return flaw


def late(seconds: float) -> Flaw:
    """So much silence before it."""

    def flaw(audio):
        n = round(seconds * SAMPLE_RATE)
        return np.pad(audio, ((0, 0), (n, 0)))[:, : audio.shape[1]]

    return flaw


def faded(seconds: float) -> Flaw:
    """A softer attack: a linear fade-in."""
    return lambda audio: audio * np.clip(_time(audio) / seconds, 0, 1)


def cut(at: float) -> Flaw:
    """Nothing after that second."""
    return lambda audio: audio * np.clip((at - _time(audio)) / 0.01, 0, 1)


def rescaled(decibels: float) -> Flaw:
    """So many dB louder."""
    return lambda audio: audio * 10 ** (decibels / 20)


def hiss(decibels: float) -> Flaw:
    """White noise all along, so many dB from the sound's RMS."""

    def flaw(audio):
        noise = np.random.default_rng(0).standard_normal(audio.shape)
        return audio + noise * np.sqrt(np.mean(audio**2)) * 10 ** (decibels / 20)

    return flaw


def breath(decibels: float) -> Flaw:
    """White noise that follows the sound's own level, so many dB from it."""

    def flaw(audio):
        noise = np.random.default_rng(0).standard_normal(audio.shape)
        return audio + noise * np.sqrt(_smooth(audio**2)) * 10 ** (decibels / 20)

    return flaw


def whistle(decibels: float, hz: float) -> Flaw:
    """A sine of fixed frequency beside the sound, so many dB from its level."""
    return lambda audio: (
        audio + np.sqrt(2 * _smooth(audio**2)) * np.sin(2 * np.pi * hz * _time(audio)) * 10 ** (decibels / 20)
    )


def ringing(decibels: float, hz: float, after: float) -> Flaw:
    """A tone that stays where the sound has ended, so many dB from its loudest."""

    def flaw(audio):
        tone = np.sin(2 * np.pi * hz * _time(audio)) + 0.5 * np.sin(4 * np.pi * hz * _time(audio))
        return audio + tone * np.abs(audio).max() * 10 ** (decibels / 20) * np.clip(
            (_time(audio) - after) / 0.05, 0, 1
        )

    return flaw


def wobble(decibels: float, hz: float) -> Flaw:
    """Level that goes up and down by so many dB to either side."""
    return lambda audio: audio * 10 ** (decibels / 20 * np.sin(2 * np.pi * hz * _time(audio)))


def flutter(cents: float, hz: float) -> Flaw:
    """Pitch that goes up and down by so many cents to either side."""

    def flaw(audio):
        t = _time(audio)
        swing = (cents / 1200 * np.log(2)) / (2 * np.pi * hz)
        shifted = (t + swing * np.sin(2 * np.pi * hz * t)) * SAMPLE_RATE
        return np.stack([np.interp(shifted, np.arange(len(t)), channel) for channel in audio])

    return flaw


def _time(audio: np.ndarray) -> np.ndarray:
    return np.arange(audio.shape[1]) / SAMPLE_RATE


def _smooth(power: np.ndarray) -> np.ndarray:
    n = SAMPLE_RATE // 20
    return np.stack([np.convolve(channel, np.ones(n) / n, "same") for channel in power])
