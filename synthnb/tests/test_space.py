"""A space's parameters: sampling follows the prior, vectors and quantiles invert, what does not fit is named."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import yaml
from dexed.algorithms import algorithms
from scipy import stats

from synthnb.space import NOTE_FIELDS, SPACES, Note, Parameter, ParameterSpace, SpaceError
from synthnb.synths.dexed import LAYOUT

#: One parameter of every kind with every kind of prior.
EVERY_PRIOR = """
name: every_prior
synth: none
seconds: 1.0
note:
  pitch: {kind: integer, low: 40, high: 50, default: 45}
  start: {kind: continuous, low: 0.0, high: 0.1, default: 0.0, prior: {default_share: 0.5}}
  end: {kind: continuous, low: 0.2, high: 1.0, default: 0.5}
  velocity: 90
parameters:
  integer_uniform: {kind: integer, low: -3, high: 4, default: 0, module: a}
  integer_histogram: {kind: integer, low: 10, high: 14, default: 12, module: a, prior: {histogram: [5, 0, 1, 3, 1]}}
  integer_beta: {kind: integer, low: 0, high: 9, default: 0, module: a, prior: {beta: [2, 5]}}
  integer_default: {kind: integer, low: 0, high: 9, default: 7, module: a, prior: {default_share: 0.6}}
  integer_both:
    {kind: integer, low: 0, high: 3, default: 2, module: a, prior: {histogram: [4, 3, 2, 1], default_share: 0.3}}
  choice_uniform: {kind: categorical, choices: [x, y, z], module: b}
  choice_weights:
    {kind: categorical, choices: [x, y, z], default: y, module: b, prior: {histogram: [0.2, 0.1, 0.7]}}
  choice_default: {kind: categorical, choices: [x, y, z], default: z, module: b, prior: {default_share: 0.4}}
  real_uniform: {kind: continuous, low: -2.0, high: 5.0, default: 0.0, module: c}
  real_histogram: {kind: continuous, low: 0.0, high: 4.0, default: 0.0, module: c, prior: {histogram: [1, 0, 3, 4]}}
  real_beta: {kind: continuous, low: 10.0, high: 20.0, default: 10.0, module: c, prior: {beta: [0.7, 3.0]}}
  real_default:
    {kind: continuous, low: 0.0, high: 1.0, default: 0.25, module: c, prior: {beta: [2, 2], default_share: 0.3}}
"""
#: Probabilities of the discrete ones, worked out by hand or by scipy, not by the space.
EXPECTED = {
    "integer_uniform": np.full(8, 1 / 8),
    "integer_histogram": np.array([0.5, 0, 0.1, 0.3, 0.1]),
    "integer_beta": np.diff(stats.beta(2, 5).cdf(np.arange(11) / 10)),
    "integer_default": np.array([0.04] * 7 + [0.64] + [0.04] * 2),
    "integer_both": np.array([0.28, 0.21, 0.44, 0.07]),
    "choice_uniform": np.full(3, 1 / 3),
    "choice_weights": np.array([0.2, 0.1, 0.7]),
    "choice_default": np.array([0.2, 0.2, 0.6]),
    "pitch": np.full(11, 1 / 11),
}
GROUPS = {
    algorithm: [[tuple(block) for block in blocks] for blocks in swaps]
    for algorithm, swaps in ParameterSpace.load("dexed").interchangeable["swaps"].items()
}


@pytest.fixture(scope="module")
def every():
    return ParameterSpace.parse(EVERY_PRIOR)


@pytest.fixture(scope="module")
def draws(every):
    """3000 samples, as one list of values per parameter."""
    rng = np.random.default_rng(1)
    rows = [{**patch, **note._asdict()} for patch, note in (every.sample(rng) for _ in range(3000))]
    return {p.name: [row[p.name] for row in rows] for p in every}


@pytest.mark.parametrize("name", EXPECTED)
def test_discrete_samples_follow_the_prior(every, draws, name):
    values = list(every[name].values)
    counts = np.bincount([values.index(value) for value in draws[name]], minlength=len(values))
    possible = EXPECTED[name] > 0
    assert not counts[~possible].any()
    expected = EXPECTED[name] * counts.sum()
    assert stats.chisquare(counts[possible], expected[possible]).pvalue > 0.01


@pytest.mark.parametrize(
    "name, cdf",
    [
        ("real_uniform", stats.uniform(-2, 7).cdf),
        ("real_histogram", lambda x: np.interp(x, [0, 1, 2, 3, 4], [0, 1 / 8, 1 / 8, 4 / 8, 1])),
        ("real_beta", lambda x: stats.beta(0.7, 3.0).cdf((x - 10) / 10)),
        ("real_default", stats.beta(2, 2).cdf),
        ("start", stats.uniform(0, 0.1).cdf),
        ("end", stats.uniform(0.2, 0.8).cdf),
    ],
)
def test_continuous_samples_follow_the_prior(every, draws, name, cdf):
    p, values = every[name], np.array(draws[name])
    share = (p.prior or {}).get("default_share", 0.0)
    default = values == p.default
    assert (
        stats.binomtest(int(default.sum()), len(values), share).pvalue > 0.01 if share else not default.any()
    )
    assert stats.kstest(values[~default], cdf).pvalue > 0.01
    assert p.low <= values.min() and values.max() <= p.high


def test_sampling_is_seeded_and_draws_one_number_per_parameter(space):
    once, again = (space.sample(np.random.default_rng(5)) for _ in range(2))
    assert once == again
    rng, counted = np.random.default_rng(5), np.random.default_rng(5)
    space.sample(rng)
    counted.random(len(list(space)))
    assert rng.random() == counted.random()


@pytest.mark.parametrize("name", ["dexed", "dexed_uniform"])
def test_encoding_and_decoding_are_exact(name):
    space, rng = ParameterSpace.load(name), np.random.default_rng(2)
    for _ in range(200):
        patch, note = space.sample(rng)
        space.check(patch)
        vector = space.encode(patch, note)
        assert vector.dtype == np.float32 and vector.shape == (space.width,)
        assert vector.min() >= 0 and vector.max() <= 1
        decoded, played = space.decode(vector)
        assert decoded == patch
        assert (played.pitch, played.velocity) == (note.pitch, space.velocity)
        assert played[2:] == pytest.approx(note[2:], abs=1e-6)
        np.testing.assert_array_equal(space.encode(decoded, played), vector)


def test_a_vector_holds_one_hot_blocks_and_linear_scalars(every):
    patch, note = every.default_patch, Note(50, 90, 0.1, 0.6)
    patch |= {"choice_uniform": "z", "integer_uniform": 4, "real_uniform": 1.5, "integer_histogram": 11}
    vector = every.encode(patch, note)
    at = every.columns
    assert vector[at["choice_uniform"]].tolist() == [0, 0, 1]
    for name, unit in [("integer_uniform", 1), ("real_uniform", 0.5), ("integer_histogram", 0.25)]:
        assert vector[at[name]].tolist() == [unit]
    np.testing.assert_allclose(vector[-3:], [1, 1, 0.5], rtol=1e-6)
    covered = np.concatenate(list(every.modules.values()))
    assert sorted(covered) == list(range(every.width)) and list(every.modules) == ["a", "b", "c", "note"]


def test_decoding_rounds_and_never_truncates(space):
    vector = space.encode(space.default_patch, Note(60, 100, 0.0, 3.0))
    for name in ("op1_rate1", "feedback", "transpose", "op6_detune", "pitch"):
        p = space[name]
        steps, column = p.states - 1, space.columns[name].start
        for step in range(steps):
            for offset, expected in [(0.499, step), (0.501, step + 1), (0.999, step + 1)]:
                moved = vector.copy()
                moved[column] = (step + offset) / steps
                patch, note = space.decode(moved)
                assert (note.pitch if name == "pitch" else patch[name]) == p.low + expected


def test_decoding_clips_and_takes_the_likeliest_choice(every):
    vector = every.encode(every.default_patch, Note(45, 90, 0.0, 0.5))
    vector[every.columns["integer_uniform"]] = -3.7
    vector[every.columns["real_uniform"]] = 1.4
    vector[every.columns["choice_uniform"]] = [0.2, 0.31, 0.3]
    patch, _ = every.decode(vector)
    assert (patch["integer_uniform"], patch["real_uniform"], patch["choice_uniform"]) == (-3, 5.0, "y")


def test_decoded_limits_can_be_encoded():
    rng = np.random.default_rng(3)
    for low, high in rng.uniform([-5, 5], [5, 9], (500, 2)):
        p = Parameter("x", "continuous", float(low), "m", float(low), float(high))
        assert p.to_unit(p.from_unit(1.0)) == 1.0 and p.to_unit(p.from_unit(0.0)) == 0.0


@pytest.mark.parametrize("name", ["dexed", "dexed_uniform"])
def test_quantiles_invert(name):
    space, rng = ParameterSpace.load(name), np.random.default_rng(4)
    vectors = np.stack([space.encode(*space.sample(rng)) for _ in range(50)])
    quantiles = space.to_quantiles(vectors)
    assert quantiles.shape == vectors.shape and quantiles.dtype == np.float32
    assert quantiles.min() >= 0 and quantiles.max() <= 1
    np.testing.assert_allclose(space.from_quantiles(quantiles), vectors, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(space.to_quantiles(vectors[7]), quantiles[7])
    beyond = space.from_quantiles(np.where(quantiles > 0.5, quantiles + 9, quantiles - 9))
    scalars = [space.columns[p.name].start for p in space if p.kind != "categorical"]
    assert beyond[:, scalars].min() >= 0 and beyond[:, scalars].max() <= 1


def test_every_value_with_weight_survives_quantiles(every):
    for p in every:
        if p.kind == "integer":
            units = np.array([p.to_unit(value) for value in p.values])[p.probabilities > 0]
            middles = p.to_quantile(units).astype(np.float32)
            np.testing.assert_allclose(p.from_quantile(middles), units, atol=1e-12)
            np.testing.assert_allclose(np.diff(p.edges), p.probabilities, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["real_uniform", "real_histogram", "real_beta", "real_default", "start", "end"]
)
def test_quantiles_of_samples_are_uniform(every, draws, name):
    p = every[name]
    units = np.array([p.to_unit(value) for value in draws[name]])
    quantiles = p.to_quantile(units)
    if p.default_quantiles:  # its share is one point, in the middle; the rest moves together
        lowest, highest = p.default_quantiles
        quantiles = quantiles[units != p.to_unit(p.default)]
        assert not ((quantiles > lowest) & (quantiles < highest)).any()
        quantiles = (quantiles - (quantiles > lowest) * (highest - lowest)) / (1 - highest + lowest)
    assert stats.kstest(quantiles, stats.uniform.cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", [{}, {"beta": [2, 5]}, {"histogram": [0, 1, 0, 2]}], ids=str)
@pytest.mark.parametrize("share", [1e-3, 0.4, 1.0])
@pytest.mark.parametrize("default", [0.1, 0.3, 0.47, 0.7])  # both ends, and two between that are not round
def test_a_share_of_a_continuous_default_is_exactly_the_default(shape, share, default):
    p = Parameter("x", "continuous", default, "m", 0.1, 0.7, prior={**shape, "default_share": share})
    at = p.to_unit(default)
    weights = Parameter("x", "continuous", default, "m", 0.1, 0.7, prior=shape or None)
    before = float(weights.to_quantile(at)) * (1 - share)
    inside = before + share * np.linspace(0, 1, 101)
    assert (p.from_quantile(inside) == at).all()
    assert {p.from_unit(unit) for unit in p.from_quantile(inside)} == {default}
    assert p.from_unit(np.float32(at)) == default  # as a vector has it
    middle = p.to_quantile(np.array([at, np.float32(at)]))
    np.testing.assert_allclose(middle, before + share / 2, rtol=0, atol=1e-8)
    outside = np.array([before - 1e-4, before + share + 1e-4])
    assert (p.from_quantile(outside[(outside > 0) & (outside < 1)]) != at).all()
    units = np.linspace(0.3, 0.45, 31)  # where all three have weight
    if share < 1:
        np.testing.assert_allclose(p.from_quantile(p.to_quantile(units)), units, rtol=0, atol=1e-7)


def test_a_uniform_prior_leaves_continuous_values_alone(every):
    units = np.linspace(0, 1, 33)
    np.testing.assert_allclose(every["real_uniform"].to_quantile(units), units, atol=1e-8)


def test_describe_has_a_row_for_every_parameter(space):
    table = space.describe()
    assert list(table["name"]) == [p.name for p in space.parameters] + list(NOTE_FIELDS)
    assert len(space.parameters) == 145 and len(table) == 148
    assert not table.isna().any(axis=None)
    rows = table.set_index("name")
    assert rows.loc["feedback", "range"] == "0 – 7"
    assert rows.loc["op1_mode", "range"] == "ratio, fixed"
    assert rows.loc["algorithm", "range"] == "1 … 32 (32)"
    assert (
        ParameterSpace.load("dexed_uniform").describe().set_index("name").loc["feedback", "prior"]
        == "0 in 12%"
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "number"}, "kind 'number' is not continuous, integer or categorical"),
        ({"low": 2.0, "high": 2.0}, "low 2.0 is not below high 2.0"),
        ({"kind": "categorical", "choices": ("a",)}, "at least two different choices"),
        ({"kind": "categorical", "choices": ("a", "a", "b")}, "at least two different choices"),
        ({"kind": "integer", "high": 2.5}, "low 0.0 and high 2.5 must be whole numbers"),
        ({"kind": "integer", "high": 999_999_999}, "has 1,000,000,000 values; at most 65,536 are possible"),
        ({"high": math.inf}, r"high is inf; a number within ±1e\+09"),
        ({"low": math.nan}, "low is nan; a number"),
        ({"low": 10**5000}, "low is .*; a number"),
        ({"high": "9"}, "high is '9'; a number"),
        ({"default": True}, "default is True; a number"),
        ({"choices": ("a", "b")}, "has choices, but is continuous"),
        ({"kind": "categorical", "choices": ("a", "b"), "codes": (1, 1)}, "1 different codes for 2 choices"),
        ({"kind": "categorical", "choices": ("a", "b"), "codes": (1, "x")}, "the code of b is 'x'"),
        ({"module": ["m"]}, r"module \['m'\] and key '' must be texts"),
        ({"prior": [1, 2]}, r"unknown prior \[1, 2\]; use histogram, beta, default_share"),
        ({"prior": {"normal": [0, 1]}}, "unknown prior {'normal'.*; use histogram, beta, default_share"),
        ({"prior": {"beta": [1, 1], "histogram": [1]}}, "a histogram and a beta prior; use one"),
        ({"prior": {"histogram": 5}}, "histogram is 5; a list of numbers"),
        ({"prior": {"histogram": []}}, "non-negative and not all zero"),
        ({"prior": {"histogram": [1, math.nan]}}, "a list of numbers"),
        ({"prior": {"beta": [1]}}, r"beta is \[1\]; two numbers from 0.01 to 1000"),
        ({"prior": {"beta": [0, 1]}}, r"beta is \[0, 1\]; two numbers"),
        (
            {"kind": "integer", "high": 3.0, "prior": {"histogram": [1, 2]}},
            "2 histogram weights for 4 values",
        ),
        ({"prior": {"histogram": [1, -1, 2]}}, "non-negative and not all zero"),
        ({"prior": {"histogram": [0, 0]}}, "non-negative and not all zero"),
        *(
            ({"prior": {"default_share": share}}, f"default_share is {share}; a probability from 0 to 1")
            for share in (-0.1, 1.01, 30, float("nan"))
        ),
        ({"default": 1.5}, "'knob' is 1.5; allowed: 0 to 1"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(SpaceError, match=f"^(parameter 'knob': )?{message}|'knob'.*{message}"):
        Parameter(**{"name": "knob", "kind": "continuous", "default": 0.0, "module": "m"} | settings)


def test_an_unknown_space_is_refused(tmp_path):
    with pytest.raises(SpaceError, match=r"no space 'moog'; known: dexed, dexed_uniform.*; or pass the path"):
        ParameterSpace.load("moog")
    with pytest.raises(SpaceError, match=r"no space .*gone.yaml"):
        ParameterSpace.load(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    "text",
    ["", "just words", "{name: x}", "name: [", "[1, 2]", b"\xff\xfe", 5, None, "[" * 200_000, "- " * 200_000],
)
def test_a_text_that_is_no_space_is_refused(text):
    with pytest.raises(
        SpaceError, match=r"^some\.yaml: not a space: .*; see space/dexed.yaml for the layout$"
    ):
        ParameterSpace.parse(text, "some.yaml")


#: What a file can hold wrong: a piece of `EVERY_PRIOR`, what stands there instead, what the message says.
WRONG = [
    ("name: every_prior", "name: [x]", r"name is \['x'\]"),
    ("synth: none", "synth: 5", "synth is 5"),
    ("seconds: 1.0", "seconds: .nan", "seconds is nan; allowed: 0.1 to 60"),
    ("seconds: 1.0", "seconds: -1", "seconds is -1"),
    ("seconds: 1.0", "seconds: 1e6", "seconds is '1e6'"),
    ("seconds: 1.0", "", "the file lacks seconds"),
    ("seconds: 1.0", "seconds: 1.0\nsecond: 1", "unknown 'second'; known: name, synth"),
    ("seconds: 1.0", "seconds: 2020-13-45", "month must be in 1..12"),
    ("seconds: 1.0", "seconds: 1.0\nplugin: [a]", r"plugin is \['a'\]"),
    ("seconds: 1.0", "seconds: 1.0\nbase: {a: .inf}", r"base is {'a': inf}; names with numbers"),
    ("seconds: 1.0", "seconds: 1.0\nbase: {a: {b: {c: {d: 1}}}}", "base is "),
    ("seconds: 1.0", "seconds: &s 1.0\nplugin: *s", "line 5 is nested too deep, or an alias"),
    ("velocity: 90", "velocity: loud", "velocity is 'loud'; allowed: 1 to 127"),
    ("velocity: 90", "velocity: 0", "velocity is 0"),
    ("velocity: 90", "", "note lacks velocity"),
    ("low: 40, high: 50", "low: 40, high: 128", "the note's pitch is integer, 40 to 128"),
    ("low: 0.0, high: 0.1", "low: -1.0, high: 0.1", "the note's start and end must be continuous, from 0 to 60"),
    ("low: 0.0, high: 0.1", "low: 0.0, high: 2.0", "the note's start must not begin .* nor reach beyond"),
    ("parameters:", "parameters: [a]\nparameter:", "unknown 'parameter'"),
    ("parameters:", "parameters:\n  x: text", "parameter 'x' is 'text'; names with values are needed"),
    ("parameters:", "parameters:\n  x: {kind: continuous}", "parameter 'x': its name, module ''"),
    ("parameters:", "parameters:\n  5: {kind: continuous, module: a}", "parameter 5: its name"),
    ("parameters:", "parameters:\n  x: {kind: continuous, module: a, defualt: 1}", "unknown 'defualt'; known: key"),
    ("parameters:", "parameters:\n  x: {kind: continuous, module: note}", "parameter 'x': module note"),
    ("parameters:", "parameters:\n  pitch: {kind: continuous, module: a}", "parameter 'pitch' comes twice"),
    ("parameters:", "parameters:\n  velocity: {kind: continuous, module: a}", "parameter 'velocity' comes twice"),
    ("choices: [x, y, z], module", "choices: [on, off], module", "choice True is no text; write it in quotes"),
    ("choices: [x, y, z], module", "choices: 5, module", "choices is 5; a list, or a mapping"),
    ("choices: [x, y, z], module", "choices: [], module", r"choices is \[\]; a list"),
    ("high: 4,", "high: 1000000000,", "'integer_uniform': has 1,000,000,004 values"),
]  # fmt: skip


@pytest.mark.parametrize("right, wrong, message", WRONG, ids=[wrong for _, wrong, _ in WRONG])
def test_what_is_wrong_in_a_file_is_named(tmp_path, right, wrong, message):
    assert right in EVERY_PRIOR
    path = tmp_path / "mine.yaml"
    path.write_text(EVERY_PRIOR.replace(right, wrong, 1))
    with pytest.raises(SpaceError, match=rf"mine\.yaml: not a space: [^\n]*{message}[^\n]*$"):
        ParameterSpace.load(path)


@pytest.mark.parametrize(
    "rules, message",
    [
        ("[a]", r"interchangeable is \['a'\]; it holds given"),
        ("{always: 5}", "interchangeable is "),
        ("{sometimes: []}", "'sometimes' is unknown"),
        ("{given: loudness}", "'loudness' is unknown"),
        ("{given: choice_uniform, swaps: {1: []}}", "1 is unknown, or no text"),
        ("{always: [[[a], [z]]]}", "'z' is unknown"),
        ("{always: [[[a], [a]]]}", r"\['a'\] and \['a'\] are not equally many different modules"),
        ("{always: [[[a], [b, c]]]}", "are not equally many different modules"),
        ("{always: [[[a], [b]]]}", "'integer_uniform' has no counterpart in b"),
    ],
)
def test_modules_that_cannot_trade_places_are_named(rules, message):
    with pytest.raises(SpaceError, match=message):
        ParameterSpace.parse(EVERY_PRIOR + f"interchangeable: {rules}\n")


def test_all_values_together_are_bounded():
    rows = "".join(f"\n  x{i}: {{kind: integer, high: 65535, module: a}}" for i in range(20))
    with pytest.raises(SpaceError, match=r"its parameters have 1,310,\d+ values; at most 1,000,000"):
        ParameterSpace.parse(EVERY_PRIOR.replace("parameters:", "parameters:" + rows, 1))


@pytest.mark.parametrize("name", sorted(path.stem for path in SPACES.glob("*.yaml")))
def test_a_changed_space_has_a_text_of_its_own(name):
    space = ParameterSpace.load(name)
    assert space.text == (SPACES / f"{name}.yaml").read_text(encoding="utf-8")
    for other in (replace(space), replace(space, velocity=90, parameters=space.parameters[::-1])):
        again = ParameterSpace.parse(other.text)
        assert again == other and [p.name for p in again] == [p.name for p in other]
    assert other.text.count(f"\n  {space.parameters[0].name}: {{") == 1  # one line a parameter


def test_any_words_survive_the_text(every):
    words = (
        "on",
        "5",
        "a: b",
        "{",
        "- x",
        " lead",
        "'q\"",
        "é",
        "音",
        "😀",
        "1e5",
        "0x1F",
        "12:30",
        "~",
        "",
        "x\ny",
    )
    p = Parameter("on", "categorical", "5", "no", choices=words, codes=tuple(range(len(words))), key="x\ty\n")
    other = replace(every, name="null", plugin="yes: #", base={"=": {"true": 1e-7}}, parameters=(p,))
    assert ParameterSpace.parse(other.text) == other


def test_a_space_can_be_read_from_any_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(EVERY_PRIOR)
    assert ParameterSpace.load(path) == ParameterSpace.parse(EVERY_PRIOR)
    path.write_bytes(b"\xef\xbb\xbf" + EVERY_PRIOR.encode())  # with a byte order mark
    assert ParameterSpace.load(path) == ParameterSpace.parse(EVERY_PRIOR)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("op1_rate1", 100, "'op1_rate1' is 100; allowed: 0 to 99"),
        ("op1_rate1", -1, "'op1_rate1' is -1; allowed: 0 to 99"),
        ("op1_rate1", 4.5, "'op1_rate1' is 4.5; a whole number is needed"),
        ("op1_rate1", "loud", "'op1_rate1' is 'loud'; a number from 0 to 99 is needed"),
        ("op1_rate1", None, "'op1_rate1' is None; a number from 0 to 99 is needed"),
        ("op1_rate1", 10**400, "'op1_rate1' is 1.*; a number from 0 to 99 is needed"),
        ("op1_rate1", float("nan"), "'op1_rate1' is nan; allowed: 0 to 99"),
        ("lfo_wave", "cosine", "'lfo_wave' is 'cosine'; allowed: triangle, saw down"),
        ("algorithm", 33, "'algorithm' is 33; allowed: 1, 2, 3"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(space, name, value, message):
    patch = space.default_patch | {name: value}
    for attempt in (lambda: space.check(patch), lambda: space.encode(patch, Note(60, 100, 0.0, 3.0))):
        with pytest.raises(SpaceError, match=message):
            attempt()


def test_what_a_synth_holds_is_refused_only_if_it_is_no_number(space):
    assert [space["feedback"].from_code(code) for code in (-math.inf, 2.4, math.inf)] == [0, 2, 7]
    with pytest.raises(SpaceError, match="'feedback' is NaN"):
        space["feedback"].from_code(math.nan)


def test_a_note_is_in_order(every):
    assert every.note({"pitch": 45.0, "start": 1, "end": 0.5, "more": 0}) == Note(45, 90, 0.5, 1.0)


def test_a_note_out_of_range_is_refused(space):
    with pytest.raises(SpaceError, match="'pitch' is 20; allowed: 36 to 84"):
        space.encode(space.default_patch, Note(20, 100, 0.0, 3.0))


def test_missing_and_unknown_parameters_are_named(space):
    patch = space.default_patch
    del patch["feedback"]
    patch["cutoff"] = 3
    for attempt in (lambda: space.check(patch), lambda: space.encode(patch, Note(60, 100, 0.0, 3.0))):
        with pytest.raises(SpaceError, match=r"space 'dexed': missing \['feedback'\], unknown \['cutoff'\]"):
            attempt()
    with pytest.raises(SpaceError, match=r"unknown \['pitch'\]"):
        space.check(space.default_patch | {"pitch": 60})


def test_a_vector_that_is_none_is_refused(space):
    with pytest.raises(SpaceError, match=rf"'dexed' has vectors of {space.width} numbers, got shape \(5,\)"):
        space.decode(np.zeros(5))
    with pytest.raises(SpaceError, match=rf"got shape \(1, {space.width}\)"):
        space.decode(np.zeros((1, space.width)))
    for bad in (np.nan, np.inf):
        with pytest.raises(SpaceError, match="NaN or infinite"):
            space.decode(np.full(space.width, bad))


@pytest.mark.parametrize("name", ["dexed", "dexed_uniform"])
def test_the_dexed_spaces_hold_exactly_the_145_bytes_of_a_voice(name):
    space = ParameterSpace.load(name)
    layout = dict(LAYOUT)
    assert len(LAYOUT) == len(layout) == 145
    assert {p.name for p in space.parameters} == set(layout)
    for p in space.parameters:
        if isinstance(layout[p.name], tuple):
            assert (p.kind, p.choices) == ("categorical", layout[p.name])
        else:
            assert (p.kind, p.low, p.high) == ("integer", 0, layout[p.name])
        assert not p.name.startswith("op") or p.module in p.name or p.name == "osc_key_sync"


def test_the_uniform_space_differs_in_its_prior_only(space):
    other = ParameterSpace.load("dexed_uniform")
    fitted, uniform = (yaml.load(one.text, yaml.CSafeLoader) for one in (space, other))
    for row in fitted["parameters"].values():
        row.pop("prior")
    assert fitted.pop("name") != uniform.pop("name")
    assert fitted == uniform


@pytest.mark.parametrize("number", range(1, 33))
def test_interchangeable_operators_are_the_automorphisms_of_the_algorithm(space, number):
    algorithm = algorithms[number - 1]
    matrix, carriers, (source, target) = (
        algorithm.mod_matrix,
        set(algorithm.carriers),
        algorithm.feedback_edge,
    )

    def keeps(order):
        order = list(order)
        return (
            {order[i] for i in carriers} == carriers
            and (order[source], order[target]) == (source, target)
            and np.array_equal(matrix[np.ix_(order, order)], matrix)
        )

    groups = space.interchangeable_in(space.default_patch | {"algorithm": str(number)})
    every = sum(keeps(order) for order in itertools.permutations(range(6)))
    assert every == math.prod(math.factorial(len(blocks)) for blocks in groups)
    for blocks in groups:
        for first, second in itertools.combinations(blocks, 2):
            order = list(range(6))
            for a, b in zip(first, second):
                a, b = int(a[2:]) - 1, int(b[2:]) - 1
                order[a], order[b] = b, a
            assert keeps(order)
    members = [module for blocks in groups for block in blocks for module in block]
    assert len(members) == len(set(members))


@pytest.mark.parametrize("algorithm", GROUPS)
def test_swapping_interchangeable_operators_changes_no_sample(space, synth, patches, algorithm):
    heard = 0
    for patch, note in patches[:4]:
        patch = patch | {"algorithm": algorithm} | {f"op{op}_output_level": 80 + op for op in range(1, 7)}
        audio = synth.render(patch, note, 0.5)
        heard += np.abs(audio).max() > 0.01
        assert space.interchangeable_in(patch) == GROUPS[algorithm]
        for blocks in GROUPS[algorithm]:
            for first, second in itertools.combinations(blocks, 2):
                swapped = space.swap(patch, first, second)
                assert swapped != patch
                assert space.swap(swapped, first, second) == patch
                np.testing.assert_array_equal(synth.render(swapped, note, 0.5), audio)
    assert heard


def test_swapping_other_operators_is_heard(space, synth, patches):
    patch, note = patches[0]
    patch = patch | {"algorithm": "1", "op2_output_level": 90, "op1_output_level": 95}
    assert space.interchangeable_in(patch) == []
    swapped = space.swap(patch, ("op1",), ("op2",))
    assert (synth.render(swapped, note, 0.5) != synth.render(patch, note, 0.5)).any()
