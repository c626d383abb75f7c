"""What a listener notices first in a match: whether it is in tune, rings on too long, attacks too late."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from synthnb.pitch import find_pitch
from synthnb.search.match import gain
from synthnb.sound import SAMPLE_RATE, find_onset

FRAME = 0.010  # seconds, of a level
DEPTH = 60.0  # dB below a sound's loudest frame; what is fainter counts as that
REACHED = 0.9  # of the highest level, where an attack ends
IN_TUNE, LOUD_TAIL, LATE = 30.0, 20.0, 2.0  # cents, dB, times


class Heard(NamedTuple):
    """A match beside its target.

    Attributes:
        cents: how much higher it sounds; NaN if the target has no pitch, infinite if the match alone has none.
        tail: dB that its last second is louder than the target's, when both have the same RMS.
        attack: its attack time as a multiple of the target's.
    """

    cents: float
    tail: float
    attack: float


def heard(target: np.ndarray, render: np.ndarray) -> Heard:
    """Compare a render with its target, both float `(channels, samples)` of 1 s or more."""
    played, wanted = find_pitch(render), find_pitch(target)
    cents = 1200 * math.log2(played.hz / wanted.hz) if played and wanted else math.inf
    levels = [_levels(target), _levels(render * gain(target, render))]
    tails = [10 * np.log10((10 ** (level[-round(1 / FRAME) :] / 10)).mean()) for level in levels]
    return Heard(
        cents if wanted else math.nan, float(tails[1] - tails[0]), attack_time(render) / attack_time(target)
    )


def attack_time(audio: np.ndarray) -> float:
    """Seconds from the onset until the level of 10 ms first reaches 90 % of its highest; at least 10 ms."""
    amplitude = 10 ** (_levels(audio) / 20)
    end = (np.argmax(amplitude >= REACHED * amplitude.max()) + 1) * FRAME
    return max(FRAME, end - find_onset(audio))


def _levels(audio: np.ndarray) -> np.ndarray:
    """RMS in dB, one value for every 10 ms, none more than `DEPTH` below the loudest."""
    frame = round(FRAME * SAMPLE_RATE)
    whole = audio[:, : audio.shape[1] // frame * frame].astype(np.float64)
    power = np.square(whole).reshape(len(audio), -1, frame).mean(axis=(0, 2))
    decibels = 10 * np.log10(power + 1e-20)
    return np.maximum(decibels, decibels.max() - DEPTH)
