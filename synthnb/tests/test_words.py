"""How a render differs from its target, and candidates from each other, in words."""

import numpy as np
import pytest

from synthnb.evaluate.flaws import cut, faded, hiss, late, rescaled, shelf, wobble
from synthnb.evaluate.pairs import dx7_pairs
from synthnb.search.words import contrast, words
from synthnb.tests.test_distance import saw


def decayed(rate: float) -> np.ndarray:
    return saw(decay=rate)


@pytest.mark.parametrize(
    "target, render, said",
    [
        (saw(), shelf(8, 1000)(saw()), "brighter"),
        (saw(), shelf(-8, 1000)(saw()), "darker"),
        (saw(), faded(0.2)(saw()), "slower attack"),
        (faded(0.2)(saw()), saw(), "faster attack"),
        (cut(2)(saw()), saw(), "rings longer"),
        (saw(), cut(2)(saw()), "shorter"),
        (decayed(0.5), decayed(2), "decays faster"),
        (decayed(2), decayed(0.5), "decays slower"),
        (saw(), late(0.1)(saw()), "starts late"),
        (late(0.1)(saw()), saw(), "starts early"),
        (saw(), hiss(-15)(saw()), "more noise"),
        (hiss(-15)(saw()), saw(), "less noise"),
        (saw(vibrato=40), saw(), "less vibrato"),
        (saw(), saw(vibrato=40), "more vibrato"),
        (wobble(4, 5)(saw()), saw(), "less tremolo"),
        (saw(), wobble(4, 5)(saw()), "more tremolo"),
    ],
)
def test_a_difference_is_said_first(target, render, said):
    assert said in words(target, render)[:2]


@pytest.mark.parametrize(
    "cents, said",
    [
        (12, "12 cents sharp"),
        (-40, "40 cents flat"),
        (100, "a semitone high"),
        (-700, "7 semitones low"),
        (1200, "an octave high"),
        (-2400, "2 octaves low"),
    ],
)
def test_an_interval_is_said(cents, said):
    target = saw(440)
    assert words(target, saw(440 * 2 ** (cents / 1200)))[0] == said


def test_what_is_close_is_not_talked_about():
    for render in (saw(), rescaled(-12)(saw()), shelf(1.5, 1000)(saw()), late(0.005)(saw()), saw(220.3)):
        assert words(saw(), render) == []


def test_a_pitch_that_is_gone_or_new_is_said():
    noise = np.random.default_rng(0).standard_normal(saw().shape).astype(np.float32)
    assert words(saw(), noise)[0] == "no clear pitch"
    assert words(noise, saw())[0] == "a clear pitch"
    assert words(noise, noise) == []
    assert "no clear pitch" in words(saw(), np.zeros_like(saw()))


def test_the_bad_flaws_of_pairs_are_mostly_said_and_the_slight_ones_mostly_not():
    pairs = dx7_pairs()
    assert np.mean([bool(words(pair.target, pair.bad)) for pair in pairs]) > 0.85
    assert np.mean([bool(words(pair.target, pair.slight)) for pair in pairs]) < 0.2


def test_candidates_are_told_apart():
    renders = [saw(), saw(), shelf(-9, 800)(saw()), faded(0.3)(saw()), saw(440), hiss(-12)(saw())]
    said = contrast(renders)
    assert said[0] == said[1] == []
    assert said[2] == ["darker"] and said[3][0] == "slower attack"
    assert said[4][0] == "an octave high" and "more noise" in said[5]
    assert contrast([]) == [] and contrast([saw()]) == [[]]
    assert max(map(len, said)) <= 3
