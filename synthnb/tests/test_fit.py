"""Fitting a prior to patches: histograms come back, nothing else of the space changes."""

from dataclasses import replace

import numpy as np
import pytest

from synthnb.space import ParameterSpace, SpaceError
from synthnb.space.fit import UNIFORM_SHARE, check_writable, fit_prior, write_space

TEXT = """
name: small
synth: none
seconds: 1.0
note:
  pitch: {kind: integer, low: 40, high: 50, default: 45, prior: {beta: [2, 2]}}
  start: {kind: continuous, low: 0.0, high: 0.1, default: 0.0}
  end: {kind: continuous, low: 0.2, high: 1.0, default: 0.5}
  velocity: 90
parameters:
  steps: {kind: integer, low: 3, high: 7, default: 3, module: a}
  choice: {kind: categorical, choices: ['off', 'on', 'both'], default: 'on', module: a}
  real: {kind: continuous, low: -1.0, high: 1.0, default: 0.0, module: b}
"""


@pytest.fixture(scope="module")
def small():
    return ParameterSpace.parse(TEXT)


def test_known_histograms_are_recovered(small):
    rng = np.random.default_rng(0)
    steps, choice = [0.5, 0.0, 0.2, 0.2, 0.1], [0.7, 0.05, 0.25]
    people = [
        {
            "steps": 3 + int(rng.choice(5, p=steps)),
            "choice": ("off", "on", "both")[rng.choice(3, p=choice)],
            "real": float(2 * rng.beta(2, 5) - 1),
        }
        for _ in range(5000)
    ]
    fitted = fit_prior(small, people, "fitted")
    assert fitted.name == "fitted"
    for name, shares in [("steps", steps), ("choice", choice)]:
        mixed = (1 - UNIFORM_SHARE) * np.array(shares) + UNIFORM_SHARE / len(shares)
        np.testing.assert_allclose(fitted[name].probabilities, mixed, atol=0.025)
        assert fitted[name].probabilities.min() > 0
    drawn = np.array([fitted.sample(rng)[0]["real"] for _ in range(2000)])
    given = np.array([patch["real"] for patch in people])
    np.testing.assert_allclose(
        np.quantile(drawn, [0.1, 0.5, 0.9]), np.quantile(given, [0.1, 0.5, 0.9]), atol=0.06
    )


def test_counts_are_exact_for_the_dexed_space():
    space = ParameterSpace.load("dexed_uniform")
    people = [space.default_patch | {"feedback": 7 * (i % 2), "algorithm": str(1 + i % 4)} for i in range(40)]
    fitted = fit_prior(space, people, "mine")
    share = UNIFORM_SHARE / 8
    expected = np.array([0.485 + share, *[share] * 6, 0.485 + share])
    np.testing.assert_allclose(fitted["feedback"].probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(fitted["algorithm"].probabilities[:5], [0.2434] * 4 + [0.0009], atol=1e-4)


def test_only_the_name_and_the_parameters_priors_change(small):
    fitted = fit_prior(small, [small.default_patch] * 20, "fitted")
    for p in fitted.parameters:
        share = {"default_share"} if p.kind == "continuous" else set()
        assert set(p.prior) == {"histogram"} | share
    flat = tuple(replace(p, prior=None) for p in fitted.parameters)
    assert replace(fitted, name="small", parameters=flat) == small


def test_a_continuous_default_that_many_keep_has_its_share(small):
    default = small["real"].default
    patches = [small.default_patch | {"real": value} for value in [default] * 30 + [1.0] * 10]
    prior = fit_prior(small, patches, "x")["real"].prior
    assert prior["default_share"] == 0.75
    assert prior["histogram"][-1] > 900 and max(prior["histogram"][:-1]) < 2


def test_the_ends_of_a_continuous_range_are_counted(small):
    patches = [small.default_patch | {"real": value} for value in [-1.0, 1.0] * 10]
    weights = fit_prior(small, patches, "x")["real"].prior["histogram"]
    assert weights[0] == weights[-1] > 480 and max(weights[1:-1]) < 1


def test_too_few_patches_are_refused(small):
    with pytest.raises(ValueError, match="19 patches are too few to fit a prior; 20 or more"):
        fit_prior(small, [small.default_patch] * 19, "x")


def test_a_patch_that_does_not_fit_is_refused(small):
    with pytest.raises(SpaceError, match="'steps' is 9"):
        fit_prior(small, [small.default_patch] * 20 + [small.default_patch | {"steps": 9}], "x")


def test_what_is_written_is_read_again(small, tmp_path):
    fitted = fit_prior(small, [small.default_patch] * 20, "fitted")
    assert ParameterSpace.load(write_space(tmp_path / "fitted.yaml", fitted)) == fitted


@pytest.mark.parametrize("there", ["a bank", "name: an edited space", ""])
def test_nothing_is_overwritten(small, tmp_path, there):
    path = tmp_path / "mine.yaml"
    path.write_text(there)
    for attempt in (lambda: check_writable(path), lambda: write_space(path, small)):
        with pytest.raises(SpaceError, match=r"mine.yaml is there already; give another name or remove it"):
            attempt()
    assert path.read_text() == there


def test_where_nothing_can_be_written_is_said_before(tmp_path):
    check_writable(tmp_path / "new.yaml")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SpaceError, match=r"x.yaml can't be written: No such file or directory"):
        check_writable(tmp_path / "nowhere" / "x.yaml")
    with pytest.raises(SpaceError, match=r"own.syx: a space is a .yaml file; call it own.yaml"):
        check_writable(tmp_path / "own.syx")
