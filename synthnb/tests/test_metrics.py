"""The metrics give the values of the calibration table, and the fast distance gives what the metrics give."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import dexed
import librosa
import numpy as np
import pytest
import scipy.signal
import torch

from synthnb.metrics import (
    METRICS,
    UNITS,
    WEIGHTS,
    Distance,
    all_metrics,
    bootstrap_mean,
    mss,
    paired_difference,
    parameter_error,
    rms_cosine,
    sot,
    wmfcc,
)
from synthnb.space import Note, ParameterSpace, SpaceError

RATE = 44_100
MEASURES = (mss, wmfcc, sot, rms_cosine)


@pytest.fixture(autouse=True, scope="module")
def one_core():
    """The clips are short, so that sharing one among cores takes longer than measuring it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(seed: int, seconds: float = 0.25, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, (channels, round(seconds * RATE))).astype(np.float32)


def saw(pitch: float, seconds: float = 0.25, decay: float = 1.0) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * scipy.signal.sawtooth(2 * np.pi * pitch * t) * np.exp(-decay * t)).astype(np.float32)[None]


def dx7(seed: int, seconds: float = 0.25) -> np.ndarray:
    """A random patch, which may be nearly anything; the note ends halfway."""
    rng = np.random.default_rng(seed)
    parameters = rng.random(145)
    parameters[125] = rng.integers(32)  # the algorithm
    synth = dexed.DexedSynth(RATE)
    synth.load_preset(dexed.Preset.from_array(parameters))
    return np.asarray(synth.render(60, 100, seconds / 2, seconds), dtype=np.float32)[None]


def stereo(clip: np.ndarray) -> np.ndarray:
    return np.concatenate([clip, clip])


# --- the table ----------------------------------------------------------------------------------------------

SAW = stereo(saw(220, 4.0))
SINE = 0.5 * np.sin(2 * np.pi * 220 * np.arange(4 * RATE) / RATE) * np.exp(-np.arange(4 * RATE) / RATE)

#: What `scripts/compute_audio_metrics.py` makes of a sawtooth and these; there, silence has RMS NaN.
CALIBRATION = {
    "itself": (SAW, "0.000 0.000 .0000 1.0000"),
    "-6 dB copy": (SAW / 2, "0.000 0.648 .0000 1.0000"),
    "+10 cents": (stereo(saw(220 * 2 ** (10 / 1200), 4.0)), "1.109 1.198 .0086 1.0000"),
    "octave up": (stereo(saw(440, 4.0)), "6.699 9.501 .0588 1.0000"),
    "sine, same envelope": (stereo(SINE.astype(np.float32)[None]), "30.15 20.07 .2483 1.0000"),
    "no decay": (stereo(saw(220, 4.0, decay=0.0)), "17.12 5.84 .0001 .6944"),
    "white noise": (stereo(noise(0, 4.0)), "36.55 13.08 .2419 .6930"),
    "20 ms later": (np.roll(SAW, 882, axis=1), ".683 .045 .0142 .9954"),
    "silence": (np.zeros_like(SAW), "45.19 47.24 .7416 0"),
}


@functools.cache
def measured(case: str) -> dict[str, float]:
    return all_metrics(SAW, CALIBRATION[case][0])


@pytest.mark.parametrize("case", CALIBRATION)
def test_values_of_the_calibration_table(case):
    values, row = measured(case), CALIBRATION[case][1]
    assert list(values) == list(METRICS)
    for (name, value), printed in zip(values.items(), row.split(), strict=True):
        digits = len(printed.partition(".")[2])
        assert value == pytest.approx(float(printed), abs=0.6 * 10**-digits), (
            name
        )  # 36.5449 is printed as 36.55


def test_warping_gives_the_values_of_dtw_python():
    rise = np.concatenate([saw(220), noise(2)])
    for target, render, value in [
        (saw(220), saw(233, decay=9.0), 5.814158559948206),
        (noise(0), saw(110), 9.394999495506289),
        (rise, stereo(noise(4)), 6.158763114243747),
    ]:
        assert wmfcc(target, render) == pytest.approx(value, rel=1e-6)


def test_fast_values_of_the_calibration_table():
    distance = Distance(SAW)
    renders = np.stack([render for render, _ in CALIBRATION.values()])
    for name, fast in {"MSS": distance.mss, "SOT": distance.sot, "RMS": distance.rms}.items():
        values = fast(renders)
        assert values.shape == (len(renders),) and values.dtype == np.float64
        assert values == pytest.approx([measured(case)[name] for case in CALIBRATION], abs=1e-3), name


def test_a_unit_is_what_a_known_mistake_costs():
    assert UNITS["MSS"] == pytest.approx(measured("octave up")["MSS"], rel=0.01)
    assert UNITS["SOT"] == pytest.approx(measured("octave up")["SOT"], rel=0.01)
    assert UNITS["RMS"] == pytest.approx(1 - measured("no decay")["RMS"], rel=0.01)


def test_small_mistakes_rank_before_large_ones():
    order = [
        "itself",
        "-6 dB copy",
        "20 ms later",
        "+10 cents",
        "octave up",
        "no decay",
        "sine, same envelope",
        "silence",
    ]
    distances = Distance(SAW)(np.stack([CALIBRATION[case][0] for case in order]))
    assert distances[:2] == pytest.approx([0, 0], abs=1e-4)
    assert (np.diff(distances[1:]) > 0).all()


# --- properties ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_mono_is_the_same_as_its_copy_on_two_channels(measure):
    target, render = dx7(0), saw(300)
    value = measure(target, render)
    assert measure(stereo(target), stereo(render)) == value
    almost = stereo(render)  # no longer recognised as mono, so this takes the stereo definition's whole way
    almost[1, 1000] = np.nextafter(almost[1, 1000], np.float32(1))
    assert measure(stereo(target), almost) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_all_are_symmetric_and_know_a_sound_from_itself(measure):
    a, b = dx7(1), noise(1)
    assert measure(a, b) == pytest.approx(measure(b, a), rel=1e-6)
    best = 1.0 if measure is rms_cosine else 0.0
    assert measure(a, a) == pytest.approx(best, abs=1e-12) != measure(a, b)


@pytest.mark.parametrize("measure", [mss, sot, rms_cosine])
def test_level_does_not_matter(measure):
    a, b = saw(220), saw(700, decay=5.0)
    assert measure(a, 8 * b) == pytest.approx(measure(a, b), abs=1e-4)
    assert wmfcc(a, 8 * a) > 1


def test_nothing_is_ever_nan_and_all_stay_in_range():
    click = np.zeros((1, 5000), dtype=np.float32)
    click[0, 4000] = 1.0
    silence, constant = np.zeros_like(click), np.ones_like(click)
    hiss = noise(0, 5000 / RATE)
    clips = [silence, click, constant, 1e-12 * hiss, 1e6 * hiss]
    highest = {"MSS": 80.0, "wMFCC": 1000.0, "SOT": 1.0, "RMS": 1.0}
    for i, target in enumerate(clips):
        for render in clips[i:]:
            for name, value in all_metrics(target, render).items():
                assert 0.0 <= value <= highest[name], name
        distances = Distance(target)(np.stack(clips))
        assert np.isfinite(distances).all() and (distances >= 0).all()


def test_rms_cosine_of_silence():
    silence, sound = np.zeros((1, 5000), dtype=np.float32), noise(0, 5000 / RATE)
    assert rms_cosine(silence, silence) == 1.0
    assert rms_cosine(silence, sound) == rms_cosine(sound, silence) == 0.0
    assert Distance(silence).rms(np.stack([silence, sound])).tolist() == [1.0, 0.0]


# --- the fast distance --------------------------------------------------------------------------------------

RENDERS = np.stack(
    [noise(3), saw(110), saw(1234.5, decay=20), *(dx7(seed) for seed in range(3, 7)), np.zeros((1, 11025))]
)


def assert_fast_is_exact(target: np.ndarray, renders: np.ndarray, rate: int = RATE) -> None:
    distance = Distance(target, rate)
    for measure, fast in ((mss, distance.mss), (sot, distance.sot), (rms_cosine, distance.rms)):
        channels = max(len(target), renders.shape[1])
        wide = np.broadcast_to(target, (channels, target.shape[1]))
        exact = [measure(wide, np.broadcast_to(x, wide.shape), rate) for x in renders]
        assert fast(renders) == pytest.approx(exact, abs=1e-3), measure.__name__


@pytest.mark.parametrize("target", [saw(220), noise(9), dx7(10), dx7(11), np.zeros((1, 11025))])
def test_fast_is_exact(target):
    assert_fast_is_exact(target.astype(np.float32), RENDERS.astype(np.float32))


def test_fast_is_exact_in_stereo_and_when_only_one_of_the_two_is():
    wide, narrow = noise(1, channels=2), dx7(3)
    wide[1] *= np.linspace(0, 1, wide.shape[1], dtype=np.float32)
    renders = np.stack([noise(2, channels=2), np.concatenate([saw(220), 0.1 * saw(330)]), stereo(narrow)])
    assert_fast_is_exact(wide, renders)
    assert_fast_is_exact(narrow, renders)
    assert_fast_is_exact(wide, renders[:, :1])


@pytest.mark.parametrize("samples", [4410, 4411, 9999, 11026])
def test_fast_is_exact_at_any_length(samples):
    assert_fast_is_exact(
        saw(220)[:, :samples] if samples < 11026 else saw(220, 0.3)[:, :samples],
        noise(0, 0.3)[None, :, :samples],
    )


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
def test_fast_is_exact_at_other_sample_rates(rate):
    assert_fast_is_exact(saw(220), np.stack([noise(4), dx7(5)]), rate)


@pytest.mark.parametrize("sample_rate", [16_000, 44_100, 48_000])
def test_a_spectrum_is_librosas(sample_rate):
    clip = noise(5)
    distance = Distance(clip, sample_rate)
    for spectrum in [distance._spectrum, *distance._mels]:
        exact = np.abs(librosa.stft(clip[0], n_fft=spectrum._size, hop_length=spectrum._hop))
        assert spectrum.magnitude(clip)[0] == pytest.approx(exact, abs=1e-5 * float(exact.max()))


def test_the_distance_is_the_weighted_sum_and_each_render_is_on_its_own():
    distance = Distance(dx7(10))
    terms = {"MSS": distance.mss(RENDERS), "SOT": distance.sot(RENDERS), "RMS": 1 - distance.rms(RENDERS)}
    total = distance(RENDERS)
    assert total == pytest.approx(sum(WEIGHTS[name] / UNITS[name] * term for name, term in terms.items()))
    assert total.tolist() == [distance(render[None])[0] for render in RENDERS]


def test_tensors_stereo_copies_and_threads_change_nothing():
    distance = Distance(dx7(10))
    expected = distance(RENDERS).tolist()
    assert distance(torch.tensor(RENDERS, dtype=torch.float32)).tolist() == expected
    assert distance(RENDERS.repeat(2, axis=1)).tolist() == expected
    assert Distance(stereo(dx7(10)))(RENDERS).tolist() == expected
    with ThreadPoolExecutor(2) as pool:
        assert [result.tolist() for result in pool.map(distance, [RENDERS] * 2)] == [expected] * 2


def test_a_batch_of_none_gives_none():
    assert Distance(saw(220))(np.zeros((0, 1, 11025), dtype=np.float32)).shape == (0,)


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_what_cannot_be_measured_is_named(measure):
    good, broken = noise(0), noise(0)
    broken[0, 7] = np.nan
    with pytest.raises(ValueError, match=r"the target has shape \(1, 11025\), the render \(2, 11025\)"):
        measure(good, stereo(good))
    with pytest.raises(
        ValueError, match=r"the render is float32 \(11025,\); give float \(channels, samples\)"
    ):
        measure(good, good[0])
    with pytest.raises(ValueError, match=r"the target is float32 \(3, 11025\)"):
        measure(np.concatenate([good, good, good]), good)
    with pytest.raises(ValueError, match="the target is int16"):
        measure((good * 1000).astype(np.int16), good)
    with pytest.raises(ValueError, match="has 4409 samples; give 4410 or more, a window of 100 ms"):
        measure(good[:, :4409], good[:, :4409])
    for value in (np.nan, np.inf):
        broken[0, 7] = value
        with pytest.raises(ValueError, match="the render holds NaN or infinity"):
            measure(good, broken)


def test_the_distance_names_what_it_cannot_measure():
    distance = Distance(noise(0))
    with pytest.raises(
        ValueError, match=r"the renders have shape \(1, 11025\); give \(batch, channels, 11025\)"
    ):
        distance(noise(0))
    with pytest.raises(ValueError, match=r"the renders have shape \(1, 1, 4410\)"):
        distance.mss(noise(0)[None, :, :4410])
    with pytest.raises(ValueError, match=r"render 0 is float32 \(3, 11025\)"):
        distance.sot(noise(0, channels=3)[None])
    broken = RENDERS.copy()
    broken[4, 0, 100] = np.nan
    with pytest.raises(ValueError, match="render 4 holds NaN"):
        distance(broken)
    with pytest.raises(ValueError, match="the target has 100 samples"):
        Distance(noise(0)[:, :100])


# --- parameters ---------------------------------------------------------------------------------------------

#: Six small modules; `kind` says which are interchangeable: all; in two sets, one of pairs; pairs that nest singles.
SIX = """
name: six
synth: none
seconds: 1.0
note:
  pitch: {kind: integer, low: 40, high: 50, default: 45}
  start: {kind: continuous, low: 0.0, high: 0.1, default: 0.0}
  end: {kind: continuous, low: 0.2, high: 1.0, default: 0.5}
  velocity: 90
parameters:
  kind: {kind: categorical, choices: [none, all, sets, nested], module: main}
""" + "".join(
    f"""
  op{i}_level: {{kind: integer, low: -5, high: 15, default: 0, module: op{i}}}
  op{i}_tune: {{kind: continuous, low: 1.0, high: 3.0, default: 1.0, module: op{i}}}
  op{i}_wave: {{kind: categorical, choices: [sine, saw, square], module: op{i}}}
"""
    for i in range(1, 7)
)
SIX += """
interchangeable:
  given: kind
  swaps:
    all: [[[op1], [op2], [op3], [op4], [op5], [op6]]]
    sets: [[[op1, op2], [op4, op3]], [[op5], [op6]]]
    nested: [[[op1, op2], [op3, op4]], [[op1], [op2]], [[op3], [op4]]]
"""
SIX_NOTE = Note(45, 90, 0.0, 0.5)
PAIR_ORDERS = [((1, 2), (3, 4)), ((3, 4), (1, 2))]
#: Which operator's settings each of the six takes, written out by hand for every order that sounds the same.
ORDERS = {
    "none": [(1, 2, 3, 4, 5, 6)],
    "all": list(itertools.permutations(range(1, 7))),
    "sets": [(*four, *two) for four in ((1, 2, 3, 4), (4, 3, 2, 1)) for two in ((5, 6), (6, 5))],
    "nested": [
        (*first, *second, 5, 6)
        for pairs in PAIR_ORDERS
        for first in itertools.permutations(pairs[0])
        for second in itertools.permutations(pairs[1])
    ],
}


@pytest.fixture(scope="module")
def six():
    return ParameterSpace.parse(SIX)


def reordered(patch: dict, order: tuple[int, ...]) -> dict:
    """The patch whose operator i has the settings of operator `order[i - 1]`."""
    names = ("level", "tune", "wave")
    taken = {f"op{i}_{name}": patch[f"op{j}_{name}"] for i, j in enumerate(order, 1) for name in names}
    return {**patch, **taken}


def brute_force(space, a, b, orders) -> float:
    """The least mean difference over all orders, from vectors, where one wrong choice is two wrong cells."""
    weights = np.concatenate([np.full(p.width, 0.5 if p.kind == "categorical" else 1.0) for p in space])
    gaps = [np.abs(space.encode(reordered(a[0], order), a[1]) - space.encode(*b)) for order in orders]
    return float((np.array(gaps) @ weights).min() / len(list(space)))


@pytest.mark.parametrize("kind", ORDERS)
def test_the_parameter_error_is_the_least_over_all_swaps(six, kind):
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = ((patch | {"kind": kind}, note) for patch, note in (six.sample(rng) for _ in range(2)))
        error = parameter_error(six, a, b)
        assert error == pytest.approx(brute_force(six, a, b, ORDERS[kind]), abs=1e-6)
        assert error == pytest.approx(parameter_error(six, b, a))
        order = ORDERS[kind][rng.integers(len(ORDERS[kind]))]
        assert parameter_error(six, a, (reordered(a[0], order), a[1])) == 0
        assert parameter_error(six, (reordered(a[0], order), a[1]), b) == pytest.approx(error)


def test_a_parameter_error_worked_out_by_hand(six):
    patch = six.default_patch
    changed = patch | {"op1_level": 10, "op2_tune": 1.5, "op3_wave": "square"}
    note = Note(50, 90, 0.1, 0.5)
    wrong = 10 / 20 + 0.5 / 2 + 1 + 5 / 10 + 1
    assert parameter_error(six, (patch, SIX_NOTE), (changed, note)) == pytest.approx(wrong / 22)
    assert parameter_error(six, (patch, SIX_NOTE), (patch | {"kind": "all"}, SIX_NOTE)) == pytest.approx(
        1 / 22
    )


def test_only_what_is_interchangeable_in_the_first_patch_is_swapped(six):
    patch = six.default_patch | {"op1_level": 10, "kind": "sets"}
    within, across = patch | {"op1_level": 0, "op4_level": 10}, patch | {"op1_level": 0, "op2_level": 10}
    assert parameter_error(six, (patch, SIX_NOTE), (within, SIX_NOTE)) == 0
    assert parameter_error(six, (patch, SIX_NOTE), (across, SIX_NOTE)) == pytest.approx(2 * 0.5 / 22)
    other = within | {"kind": "none"}
    assert parameter_error(six, (patch, SIX_NOTE), (other, SIX_NOTE)) == pytest.approx(1 / 22)
    assert parameter_error(six, (other, SIX_NOTE), (patch, SIX_NOTE)) == pytest.approx((1 + 2 * 0.5) / 22)


@pytest.mark.parametrize("algorithm", ["5", "12", "20", "25", "32"])
def test_swapped_dexed_operators_are_no_error(space, patches, algorithm):
    (patch, note), (other, _) = patches[:2]
    patch, other = patch | {"algorithm": algorithm}, other | {"algorithm": algorithm}
    swapped = patch
    for blocks in space.interchangeable_in(patch):
        for first, second in itertools.pairwise(blocks):
            swapped = space.swap(swapped, first, second)
    assert swapped != patch
    assert parameter_error(space, (patch, note), (swapped, note)) == 0
    gaps = np.abs(space.encode(patch, note) - space.encode(other, note))
    plain = sum(gaps[space.columns[p.name]].max() for p in space) / len(list(space))
    assert 0 < parameter_error(space, (patch, note), (other, note)) < plain


def test_a_patch_of_another_space_has_no_parameter_error(six, space):
    fits = (six.default_patch, SIX_NOTE)
    for wrong in ((space.default_patch, SIX_NOTE), (six.default_patch, Note(99, 90, 0.0, 0.5))):
        for pair in ((fits, wrong), (wrong, fits)):
            with pytest.raises(SpaceError, match=r"not a patch of space 'six'|'pitch' is 99"):
                parameter_error(six, *pair)


# --- bootstrap ----------------------------------------------------------------------------------------------


def test_a_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.gamma(2.0, 3.0, 40), seed, n=1000) for seed in range(300)]
    covered = np.mean([low <= 6.0 <= high for _, low, high in intervals])
    assert 0.90 <= covered <= 0.97


def test_a_bootstrap_interval_is_as_wide_as_theory_says_and_repeats():
    values = np.random.default_rng(1).normal(5, 2, 2000)  # enough that resamples come in several chunks
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(2000), rel=0.05)
    assert (mean, low, high) == bootstrap_mean(list(values)) != bootstrap_mean(values, seed=1)
    assert bootstrap_mean([3.0]) == (3.0, 3.0, 3.0)


def test_paired_differences_see_what_single_intervals_do_not():
    rng = np.random.default_rng(2)
    difficulty = rng.gamma(2.0, 5.0, 50)
    a, b = difficulty + rng.normal(0.5, 0.3, 50), difficulty + rng.normal(0.0, 0.3, 50)
    mean, low, high = paired_difference(a, b)
    assert mean == pytest.approx(a.mean() - b.mean())
    assert 0 < low < mean < high
    assert bootstrap_mean(a)[1] < bootstrap_mean(b)[2]  # these overlap
    assert paired_difference(b, a)[0] == pytest.approx(-mean)


def test_bootstrap_refuses_what_has_no_mean():
    for values in ([], [1.0, np.nan], [np.inf], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="give a list of finite numbers"):
            bootstrap_mean(values)
    with pytest.raises(ValueError, match=r"a has shape \(2,\) and b \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])
