"""What a listener minds: pairs of renders, each term by its calibrated mistake, stages that never change an answer."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from synthnb.evaluate.flaws import cut, faded, hiss, late, ringing, wobble
from synthnb.evaluate.pairs import dx7_pairs, surge_pairs, table
from synthnb.metrics import Distance
from synthnb.pitch import find_pitch
from synthnb.search import hearing
from synthnb.search.distance import UNITS, WEIGHTS, HeardDistance
from synthnb.sound import SAMPLE_RATE
from synthnb.synths import SynthNotFound

TIME = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
#: Where the distance doesn't say what a listener would: noise still weighs much in MSS, and a brass swells anyway.
MISSED = {
    "organ: hiss at -50 dB < 34 cents sharp",
    "piano: breath at -40 dB < 38 cents flat",
    "brass: 4 dB darker < 200 ms of fade-in",
}


def saw(hz: float = 220.0, vibrato: float = 0.0, decay: float = 0.0, samples: int = len(TIME)) -> np.ndarray:
    """Forty partials, with a vibrato of so many cents to either side at 5 Hz."""
    time = TIME[:samples]
    cycles = hz * (time - vibrato / 1200 * math.log(2) / (10 * math.pi) * np.cos(10 * math.pi * time))
    partials = sum(np.sin(2 * np.pi * k * cycles) / k for k in range(1, 41))
    return (0.3 * partials * np.exp(-decay * time))[None].astype(np.float32)


@pytest.fixture(scope="module")
def steady():
    return HeardDistance(saw())


def test_the_worse_of_two_is_farther():
    pairs = dx7_pairs()
    assert len(pairs) >= 40
    mss, published = (lambda target: Distance(target).mss), Distance
    rows = table(pairs, {"heard": HeardDistance, "MSS": mss, "published": published})
    assert {pair.name for pair, ratio in zip(pairs, rows["heard"]) if ratio <= 1} <= MISSED
    # What it is for: MSS alone misses more of them, and the sum of the published metrics more still.
    missed = (rows[["heard", "MSS", "published"]] <= 1).sum().tolist()
    assert missed == sorted(missed) and missed[0] < missed[1]


def test_the_worse_of_two_is_farther_with_surge():
    try:
        pairs = surge_pairs()
    except SynthNotFound as error:
        pytest.skip(str(error))
    assert len(pairs) >= 10
    assert table(pairs, {"heard": HeardDistance})["heard"].min() > 1


def test_a_unit_of_each_term_is_its_calibrated_mistake(steady):
    decaying = HeardDistance(saw(decay=2))
    mistakes = {
        "spectrum": steady.terms(saw(440)),
        "attack": steady.terms(faded(0.1)(saw())),
        "tuning": steady.terms(saw(220 * 2 ** (50 / 1200))),
        "partials": steady.terms(saw(220 * 2 ** (50 / 1200))),
        "vibrato": steady.terms(saw(vibrato=30)),
        "tremolo": steady.terms(wobble(3, 5)(saw())),
    }
    assert {name: terms[name] for name, terms in mistakes.items()} == pytest.approx(
        dict.fromkeys(mistakes, 1), abs=0.1
    )
    # A level that is 10 dB off for the last half, and on average: half of the time by what was taken from the rest.
    quieter = saw() * np.where(TIME < 2, 1, 10**-0.5)
    assert steady.terms(quieter)["level"] == pytest.approx(0.5, abs=0.03)
    assert decaying.terms(saw())["level"] > 2 and decaying.terms(saw())["RMS"] > 1


def test_each_flaw_is_heard_by_its_own_term(steady):
    flawed = {
        "level": ringing(-35, 220, 2.2)(cut(2)(saw())),
        "attack": late(0.1)(saw()),
        "tuning": saw(110),
        "vibrato": saw(vibrato=40),
        "tremolo": wobble(4, 6)(saw()),
    }
    short = HeardDistance(cut(2)(saw()))
    for name, render in flawed.items():
        terms = (short if name == "level" else steady).terms(render.astype(np.float32))
        counted = {term: WEIGHTS[term] * terms[term] for term in flawed}
        assert max(counted, key=counted.get) == name


def test_the_same_is_nothing_and_level_and_a_copy_of_the_channel_dont_matter(steady):
    assert steady(saw()[None]) == pytest.approx([0], abs=1e-5)
    assert steady(0.1 * saw()[None]) == pytest.approx([0], abs=1e-2)
    other = saw(230, vibrato=20)
    both = np.repeat(other, 2, axis=0)
    assert steady(both[None]) == pytest.approx(steady(other[None]))
    assert HeardDistance(np.repeat(saw(), 2, axis=0))(other[None]) == pytest.approx(steady(other[None]))
    wide = np.concatenate([other, saw(240)])
    assert steady(wide[None])[0] > 0


def test_the_sum_is_that_of_its_terms_and_the_published_metrics_stay(steady):
    renders = np.stack([saw(233), saw(440, decay=1), np.zeros_like(saw())])
    plain = Distance(saw())
    for name in ("mss", "sot", "rms"):
        assert getattr(steady, name)(renders).tolist() == getattr(plain, name)(renders).tolist()
    for render, value in zip(renders, steady(renders)):
        terms = steady.terms(render)
        assert terms.keys() == WEIGHTS.keys() == UNITS.keys() and min(terms.values()) >= 0
        assert sum(WEIGHTS[name] * units for name, units in terms.items()) == pytest.approx(value)
        assert terms["MSS"] * UNITS["MSS"] == pytest.approx(plain.mss(render[None])[0], rel=0.4)
        assert terms["RMS"] * UNITS["RMS"] == pytest.approx(1 - plain.rms(render[None])[0], abs=0.01)


def test_stages_reject_what_is_over_the_bound_and_nothing_else(steady, monkeypatch):
    for render in (saw(225), saw(440, decay=1), hiss(-30)(saw()).astype(np.float32)):
        (value,) = steady(render[None])
        assert steady.staged(render) == steady.staged(render, value) == value
        assert steady.staged(render, value - 1e-9) == math.inf
    monkeypatch.setattr(steady, "_mels", None)  # which fails if it is asked for
    assert steady.staged(saw(decay=2), 0.5) == math.inf
    with pytest.raises(TypeError):
        steady.staged(saw(), 0.5)


def test_threads_may_share_one(steady):
    renders = np.stack([saw(233), saw(440, decay=1), saw(vibrato=20)])
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(steady, [renders] * 4))
    assert all((result == results[0]).all() for result in results)


def test_a_target_without_pitch_has_no_tuning():
    noise = np.random.default_rng(0).standard_normal((1, len(TIME))).astype(np.float32)
    distance = HeardDistance(noise)
    assert distance.pitch is None and distance.cents(saw()) is None
    assert distance.terms(saw())["tuning"] == distance.terms(saw())["vibrato"] == 0
    assert distance(noise[None]) == pytest.approx([0], abs=1e-5) and distance(saw()[None])[0] > 1


@pytest.mark.parametrize("samples", [4410, 7001, 22050])
def test_short_and_silent_clips_have_a_distance(samples):
    silence = np.zeros((1, samples), np.float32)
    for target in (saw(samples=samples), silence):
        distance = HeardDistance(target)
        values = distance(np.stack([saw(samples=samples), saw(330, samples=samples), silence]))
        assert np.isfinite(values).all() and values.min() == pytest.approx(0, abs=1e-5)
        assert values.max() > 0.3


def test_what_cannot_be_measured_is_named(steady):
    with pytest.raises(ValueError, match="as long as the target"):
        steady.staged(saw()[:, :1000])
    with pytest.raises(ValueError, match="render 0 holds NaN"):
        steady(np.full((1, 1, len(TIME)), np.nan, np.float32))


@pytest.mark.parametrize("hz", [55.0, 220.0, 1234.5])
def test_few_spectra_find_the_pitch_that_all_of_them_do(hz):
    audio = saw(hz, decay=1)
    power, instant = hearing.spectra(audio, np.array([0, 20_000, 60_000]))
    assert instant[1, power[1].argmax()] * SAMPLE_RATE / 8192 == pytest.approx(hz, rel=5e-4)
    near, fit = hearing.pitch(power, instant)
    assert abs(near.cents_from(0) - find_pitch(audio).cents_from(0)) < 3
    assert hearing.rival(fit, near.cents_from(0) / 100) < 0.9
    assert hearing.rival(fit, near.cents_from(0) / 100 + 12) > 1


@pytest.mark.parametrize("hz", [2.5, 5.0, 9.0])
def test_a_modulation_is_as_deep_as_it_is(hz):
    series = 7.0 * np.sin(2 * np.pi * hz * np.arange(100) / 50) + 0.3 * np.arange(100)
    depths = hearing.modulation(series)
    assert depths.max() == pytest.approx(7, rel=0.25)
    assert abs(math.log2(hearing.RATES[depths.argmax()] / hz)) <= 0.3
    assert not hearing.modulation(series[:10]).any()
