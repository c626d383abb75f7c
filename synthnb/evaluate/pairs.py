"""Pairs of flawed renders, of which a listener would mind one more: what a distance must say, too.

    for pair in dx7_pairs():
        distance = Distance(pair.target)
        assert distance(pair.slight[None]) < distance(pair.bad[None]), pair.name

Every target is a sound of the synth; both renders are the same sound with a flaw, by other parameters or by what a
recording suffers. Which one is worse was written down before any distance was asked, by what is known of hearing:
mistuning is noticed from about 5 cents on and hurts from 20; half a vibrato is a vibrato, and its phase is nobody's
concern; 1 or 2 dB of brightness are small, 6 dB are not; what is masked or 60 dB down isn't heard, while a tone that
goes on where there should be silence is (Moore, "An Introduction to the Psychology of Hearing"; Fastl and Zwicker,
"Psychoacoustics"). Half of the pairs set one kind of flaw against another. `debatable` says where listeners may differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from synthnb.sound import SAMPLE_RATE
from synthnb.space import Note, ParameterSpace, Patch
from synthnb.synths import Synth, open_synth

SECONDS = 4.0
Flaw = (
    Patch | Callable[[np.ndarray], np.ndarray]
)  #: other parameters, or what is done to `(channels, samples)`


@dataclass(frozen=True, eq=False)
class Pair:
    """A target and two renders of it, float32 `(channels, samples)`: a slight flaw and a bad one, each in words."""

    sound: str
    flaws: tuple[str, str]
    target: np.ndarray = field(repr=False)
    slight: np.ndarray = field(repr=False)
    bad: np.ndarray = field(repr=False)
    debatable: str = ""

    @property
    def name(self) -> str:
        return f"{self.sound}: {self.flaws[0]} < {self.flaws[1]}"


def table(pairs: Sequence[Pair], distances: dict[str, Callable[[np.ndarray], Callable]]) -> pd.DataFrame:
    """What each distance says: a row for each pair, a column for each distance, bad / slight. Above 1 it is right.

    Args:
        distances: name to what makes a distance of a target `(channels, samples)`; that one takes renders `(batch,
            channels, samples)` and gives `(batch,)`, lower is better.
    """
    rows = []
    for pair in pairs:
        both = np.stack([pair.slight, pair.bad])
        values = {name: make(pair.target)(both) for name, make in distances.items()}
        ratios = {name: bad / max(slight, 1e-9) for name, (slight, bad) in values.items()}
        rows.append({"sound": pair.sound, "slight": pair.flaws[0], "bad": pair.flaws[1], **ratios})
    return pd.DataFrame(rows)


# --- what is done to a sound ------------------------------------------------------------------------------------------


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
    def flaw(audio):
        n = round(seconds * SAMPLE_RATE)
        return np.pad(audio, ((0, 0), (n, 0)))[:, : audio.shape[1]]

    return flaw


def faded(seconds: float) -> Flaw:
    """A softer attack: a linear fade-in."""
    return lambda audio: audio * np.clip(_time(audio) / seconds, 0, 1)


def cut(at: float) -> Flaw:
    return lambda audio: audio * np.clip((at - _time(audio)) / 0.01, 0, 1)


def rescaled(decibels: float) -> Flaw:
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


# --- the DX7 ----------------------------------------------------------------------------------------------------------


def _ops(**values: Sequence[float]) -> Patch:
    """`_ops(coarse="1 2")`: operator 1's and 2's."""
    return {
        f"op{i}_{name}": value if name == "coarse" else int(value)
        for name, listed in values.items()
        for i, value in enumerate(str(listed).split(), 1)
    }


#: Tuning: a step of all pitch levels is 37.5 cents, of all `fine` 17 cents, of all `detune` one or two.
FLAT_38, SHARP_38 = ({f"pitch_level{i}": level for i in range(1, 5)} for level in (49, 51))
SHARP_3, SHARP_17, SHARP_34 = _ops(detune="9 " * 6), _ops(fine="1 " * 6), _ops(fine="2 " * 6)

# Additive: algorithm 32 has six sine partials. The piano and the bell are pairs of two operators (algorithm 5).
ORGAN = {"algorithm": "32", **_ops(coarse="1 2 3 4 6 8", output_level="99 92 90 84 84 80", rate4="70 " * 6)}
PIANO = {
    "algorithm": "5",
    **_ops(
        coarse="1 1 1 14 1 1",
        output_level="99 84 92 74 0 0",
        rate2="28 35 30 50 0 0",
        level2="0 " * 6,
        level3="0 " * 6,
        rate4="55 " * 6,
    ),
}
BELL = {
    "algorithm": "5",
    **_ops(
        coarse="1 3 2 7 1 1",
        fine="0 50 0 0 0 0",
        output_level="99 80 85 70 0 0",
        rate2="25 25 28 30 0 0",
        level2="0 " * 6,
        level3="0 " * 6,
        rate4="36 " * 6,
    ),
}
BRASS = {
    "algorithm": "18",
    "feedback": 6,
    **_ops(coarse="1 1 1 1 1 1", output_level="99 86 80 0 0 0", rate1="55 50 50 99 99 99", rate4="62 " * 6),
}
BASS = {
    "algorithm": "5",
    **_ops(
        coarse="1 1 1 2 1 1",
        output_level="99 82 85 75 0 0",
        rate2="34 42 36 45 0 0",
        level2="0 " * 6,
        level3="0 " * 6,
        rate4="60 " * 6,
    ),
}
PAD = {
    "algorithm": "5",
    **_ops(
        coarse="1 1 1 2 1 1",
        output_level="99 80 92 74 0 0",
        rate1="40 " * 6,
        rate4="42 " * 6,
        detune="7 7 9 9 7 7",
    ),
}
LEAD = {  # with a vibrato of 30 cents to either side
    "algorithm": "5",
    "feedback": 0,
    "lfo_speed": 35,
    "lfo_pitch_mod_depth": 24,
    "pitch_mod_sensitivity": 3,
    "lfo_sync": "on",
    **_ops(coarse="1 1 1 3 1 1", output_level="99 84 88 76 0 0", rate1="70 " * 6, rate4="62 " * 6),
}
TREMOLO = {  # 6 dB deep
    **ORGAN,
    "lfo_speed": 32,
    "lfo_amp_mod_depth": 42,
    "lfo_sync": "on",
    **_ops(amp_mod_sensitivity="3 " * 6),
}
SOUNDS = {
    "organ": (ORGAN, 60),
    "piano": (PIANO, 60),
    "bell": (BELL, 72),
    "brass": (BRASS, 55),
    "bass": (BASS, 36),
    "pad": (PAD, 57),
    "lead": (LEAD, 67),
    "tremolo organ": (TREMOLO, 64),
}

#: Sound, slight flaw, bad flaw, and where listeners may differ. 24 is the transposition of a DX7 patch that has none.
DX7 = [
    ("organ", ("2 cents sharp", SHARP_3), ("34 cents sharp", SHARP_34)),
    ("brass", ("2 dB brighter", shelf(2, 1500)), ("38 cents flat", FLAT_38)),
    ("piano", ("2 dB darker", shelf(-2, 1500)), ("38 cents sharp", SHARP_38)),
    ("bass", ("8 ms late", late(0.008)), ("34 cents sharp", SHARP_34)),
    ("organ", ("one partial of six gone", {"op5_output_level": 0}), ("an octave high", {"transpose": 36})),
    (
        "bass",
        ("decays a third faster", _ops(rate2="38 46 40 49", rate4="60 " * 4)),
        ("an octave high", {"transpose": 36}),
    ),
    ("lead", ("half the vibrato", {"lfo_pitch_mod_depth": 12}), ("a fifth high", {"transpose": 31})),
    (
        "brass",
        ("3 dB darker", shelf(-3, 1500)),
        ("an octave low", {"transpose": 12}),
    ),
    ("piano", ("5 ms late", late(0.005)), ("120 ms late", late(0.12))),
    ("piano", ("2 dB brighter", shelf(2, 1500)), ("the attack softened over 150 ms", faded(0.15))),
    ("bass", ("10 ms of fade-in", faded(0.01)), ("100 ms of fade-in", faded(0.1))),
    (
        "pad",
        ("attack a quarter faster", _ops(rate1="43 43 43 43")),
        ("starts at once", _ops(rate1="99 99 99 99")),
    ),
    ("brass", ("3 dB brighter", shelf(3, 1500)), ("a tail at -35 dB", ringing(-35, 196, 2.1))),
    ("piano", ("3 dB darker", shelf(-3, 1500)), ("rings on after the key", _ops(rate4="20 20 20 20"))),
    ("bell", ("release a little faster", _ops(rate4="39 " * 4)), ("cut at the key's end", cut(2.01))),
    ("pad", ("2 dB brighter", shelf(2, 1500)), ("the release cut", cut(2.01))),
    (
        "piano",
        ("decays a fifth faster", _ops(rate2="30 37 32 52")),
        ("doesn't decay", _ops(rate2="0 " * 4, level2="99 " * 4, level3="99 " * 4)),
    ),
    (
        "organ",
        ("one partial of six 6 dB softer", {"op4_output_level": 76}),
        ("dies away within a second", _ops(rate2="42 " * 6, level2="0 " * 6, level3="0 " * 6)),
    ),
    (
        "organ",
        ("the sixth partial gone", {"op6_output_level": 0}),
        ("only two partials", _ops(output_level="99 92 0 0 0 0")),
    ),
    (
        "lead",
        ("vibrato a third less", {"lfo_pitch_mod_depth": 16}),
        ("no vibrato", {"lfo_pitch_mod_depth": 0}),
    ),
    ("lead", ("2 dB darker", shelf(-2, 2000)), ("no vibrato", {"lfo_pitch_mod_depth": 0})),
    ("lead", ("vibrato of another phase", {"lfo_sync": "off"}), ("no vibrato", {"lfo_pitch_mod_depth": 0})),
    ("lead", ("vibrato a little faster", {"lfo_speed": 38}), ("twice as fast", {"lfo_speed": 70})),
    (
        "tremolo organ",
        ("tremolo a little slower", {"lfo_speed": 30}),
        ("no tremolo", {"lfo_amp_mod_depth": 0}),
    ),
    ("tremolo organ", ("2 dB darker", shelf(-2, 1500)), ("no tremolo", {"lfo_amp_mod_depth": 0})),
    ("brass", ("2 dB darker", shelf(-2, 1500)), ("a flutter of 40 cents", flutter(40, 9))),
    ("organ", ("2 dB brighter", shelf(2, 1000)), ("a wobble of 4 dB", wobble(4, 5))),
    ("piano", ("1 dB brighter", shelf(1, 1000)), ("6 dB brighter", shelf(6, 1000))),
    ("brass", ("10 ms late", late(0.01)), ("9 dB darker", shelf(-9, 1000))),
    ("organ", ("hiss at -60 dB", hiss(-60)), ("hiss at -20 dB", hiss(-20))),
    ("pad", ("hiss at -60 dB", hiss(-60)), ("38 cents flat", FLAT_38)),
    ("brass", ("hiss at -60 dB", hiss(-60)), ("starts 100 ms late", late(0.1))),
    ("lead", ("breath at -45 dB", breath(-45)), ("breath at -10 dB", breath(-10))),
    ("pad", ("3 dB brighter", shelf(3, 1000)), ("a whistle at -20 dB", whistle(-20, 2917))),
    (
        "piano",
        ("the tine 6 dB softer", {"op4_output_level": 66}),
        ("twice the decay time, all of it", _ops(rate2="22 29 24 44")),
        "the tine is small, but what makes this piano",
    ),
    (
        "bell",
        ("the overtone 3 dB softer", {"op4_output_level": 66}),
        ("the overtone at another ratio", {"op2_fine": 20}),
        "both are bells",
    ),
    (
        "organ",
        ("hiss at -50 dB", hiss(-50)),
        ("34 cents sharp", SHARP_34),
        "hiss disturbs in headphones, but no player tunes to it",
    ),
    ("brass", ("4 dB darker", shelf(-4, 800)), ("200 ms of fade-in", faded(0.2))),
    ("piano", ("breath at -40 dB", breath(-40)), ("38 cents flat", FLAT_38)),
    ("pad", ("a vibrato of 5 cents", flutter(5, 5)), ("a wobble of 3 dB", wobble(3, 6))),
    (
        "piano",
        ("damped twice as fast after the key", _ops(rate4="62 " * 6)),
        ("200 ms of fade-in", faded(0.2)),
    ),
    ("bass", ("4 dB brighter", shelf(4, 250)), ("38 cents flat", FLAT_38)),
    (
        "pad",
        ("half as loud", rescaled(-6)),
        ("17 cents sharp", SHARP_17),
        "who matches a sound sets its level",
    ),
]


@functools.cache
def dx7_pairs() -> list[Pair]:
    """The pairs made with the DX7 engine: mono, a few of each kind of flaw; a second of work."""
    space = ParameterSpace.load("dexed")
    return _pairs(space, open_synth(space), SOUNDS, DX7)


# --- Surge XT ---------------------------------------------------------------------------------------------------------

SAW = {
    "a_osc_1_sub_mix": 0.0,
    "a_filter_1_type": "LP 24 dB",
    "a_filter_1_cutoff": 20.0,
    "a_amp_eg_release": -2.0,
}
UNISON = {**SAW, "a_osc_1_unison_voices": "4 voices", "a_osc_1_unison_detune": 0.15}
PLUCK = {
    **SAW,
    "a_amp_eg_decay": 0.0,
    "a_amp_eg_sustain": 0.0,
    "a_filter_1_cutoff": -10.0,
    "a_filter_1_feg_mod_amount": 48.0,
    "a_filter_eg_decay": -1.0,
    "a_filter_eg_sustain": 0.0,
}
VIBRATO = {**SAW, "a_lfo_1_rate": 2.5, "a_lfo_1_amplitude": 1.0, "lfo_1_to_pitch": 0.3}
SWEEP = {**SAW, "a_lfo_1_rate": 1.0, "a_lfo_1_amplitude": 1.0, "lfo_1_to_filter_1_cutoff": 18.0}
SURGE_SOUNDS = {
    "saw": (SAW, 48),
    "unison": (UNISON, 60),
    "pluck": (PLUCK, 55),
    "saw with vibrato": (VIBRATO, 67),
    "swept saw": (SWEEP, 48),
}
SURGE = [
    ("saw", ("cutoff 2 semitones lower", {"a_filter_1_cutoff": 18.0}), ("30 cents sharp", {"a_pitch": 0.3})),
    (
        "saw",
        ("cutoff 3 semitones higher", {"a_filter_1_cutoff": 23.0}),
        ("an octave high", {"a_octave": "1"}),
    ),
    ("saw", ("release a half longer", {"a_amp_eg_release": -1.4}), ("rings on", {"a_amp_eg_release": 2.5})),
    (
        "saw",
        ("cutoff 3 semitones lower", {"a_filter_1_cutoff": 17.0}),
        ("slow attack", {"a_amp_eg_attack": -1.0}),
    ),
    (
        "saw",
        ("cutoff 2 semitones higher", {"a_filter_1_cutoff": 22.0}),
        ("2 octaves lower", {"a_filter_1_cutoff": -4.0}),
    ),
    ("saw", ("a little resonance", {"a_filter_1_resonance": 0.1}), ("a lot", {"a_filter_1_resonance": 0.9})),
    (
        "unison",
        ("cutoff 3 semitones higher", {"a_filter_1_cutoff": 23.0}),
        ("40 cents flat", {"a_pitch": -0.4}),
    ),
    (
        "unison",
        ("3 voices", {"a_osc_1_unison_voices": "3 voices"}),
        ("one voice", {"a_osc_1_unison_voices": "1 voice"}),
    ),
    (
        "pluck",
        ("decays a fifth slower", {"a_amp_eg_decay": 0.26}),
        ("doesn't decay", {"a_amp_eg_sustain": 1.0}),
    ),
    (
        "pluck",
        ("the filter a fifth slower", {"a_filter_eg_decay": -0.74}),
        ("it stays open", {"a_filter_eg_sustain": 1.0}),
    ),
    (
        "saw with vibrato",
        ("two thirds of it", {"lfo_1_to_pitch": 0.2}),
        ("no vibrato", {"lfo_1_to_pitch": 0.0}),
    ),
    ("saw with vibrato", ("another phase", {"a_lfo_1_phase": 0.5}), ("no vibrato", {"lfo_1_to_pitch": 0.0})),
    (
        "swept saw",
        ("a little slower", {"a_lfo_1_rate": 0.9}),
        ("no sweep", {"lfo_1_to_filter_1_cutoff": 0.0}),
    ),
]


@functools.cache
def surge_pairs() -> list[Pair]:
    """The pairs made with Surge XT: stereo. Raises `SynthNotFound` where it isn't installed."""
    space = ParameterSpace.load("surge_human")
    return _pairs(space, open_synth(space), SURGE_SOUNDS, SURGE)


def _pairs(space: ParameterSpace, synth: Synth, sounds: dict, listed: list) -> list[Pair]:
    def play(sound: str, flaw: Flaw) -> np.ndarray:
        changed, key = sounds[sound]
        own = flaw if isinstance(flaw, dict) else {}
        audio = synth.render(space.default_patch | changed | own, Note(key, 100, 0.0, 2.0), SECONDS)[
            : synth.channels
        ]
        return (audio if own else flaw(audio)).astype(np.float32)

    return [
        Pair(
            sound,
            (slight[0], bad[0]),
            play(sound, lambda audio: audio),
            play(sound, slight[1]),
            play(sound, bad[1]),
            *debatable,
        )
        for sound, slight, bad, *debatable in listed
    ]
