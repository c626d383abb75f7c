"""The shoot-out: every search obeys its budget and is measured alike, and results are kept while they fit."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from synthnb import plots
from synthnb.evaluate import shootout as module
from synthnb.evaluate.baselines import POPULATION, EarlierDistance, Task
from synthnb.evaluate.heard import attack_time, heard
from synthnb.evaluate.shootout import (
    ALONE,
    BASELINES,
    EARLIER,
    LEFT_OUT,
    METHODS,
    OUR,
    TODAY,
    Budget,
    shootout,
)
from synthnb.evaluate.standings import against, crossed, means, noticed, spread
from synthnb.evaluate.targets import unseen_clips
from synthnb.metrics import METRICS
from synthnb.models.checkpoint import load_model
from synthnb.search.matcher import Matcher
from synthnb.sound import SAMPLE_RATE
from synthnb.tools.recordings import DRUMS, Recording, _song


@pytest.fixture(scope="module")
def targets(space):
    return unseen_clips(space, 2, seed=77)


@pytest.fixture(scope="module")
def matcher():
    return Matcher(load_model("dexed", "cpu"), workers=1)


def test_unseen_clips_are_audible_and_always_the_same(space, targets):
    again = unseen_clips(space, 1, seed=77)
    np.testing.assert_array_equal(again[0].audio, targets[0].audio)
    assert [target.name for target in targets] == ["clip 0", "clip 1"]
    assert all(np.abs(target.audio).max() > 0.001 for target in targets)


@pytest.mark.parametrize("name", [TODAY, EARLIER, *BASELINES])
def test_a_baseline_plays_exactly_as_many_as_it_may_and_repeats(matcher, targets, name, monkeypatch):
    played = []
    score = Task.score
    monkeypatch.setattr(Task, "score", lambda task, v: played.extend(v) or score(task, v))
    steps = METHODS[name].run(matcher, targets[0].audio, Budget(75), 3)
    assert len(played) == len(steps) == steps[-1].renders == 75
    values = [step.distance for step in steps]
    assert (np.diff(values) <= 0).all() and values[-1] < values[0]
    again = METHODS[name].run(matcher, targets[0].audio, Budget(20), 3)
    assert [step.distance for step in again] == values[:20]  # the budget ends it, and changes nothing else
    task = Task(matcher, targets[0].audio, EarlierDistance if name == EARLIER else module.Ranking, 0)
    assert task.score(steps[-1].vector[None])[0] == pytest.approx(values[-1], abs=1e-9)


@pytest.mark.parametrize("name", ["CMA-ES from the nearest", "GA from the nearest"])
def test_a_baseline_gets_closer_than_the_nearest(matcher, targets, name):
    steps = METHODS[name].run(matcher, targets[1].audio, Budget(128), 0)
    assert steps[-1].distance < steps[31].distance


def test_a_budget_of_seconds_ends_a_search(matcher, targets, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    steps = METHODS["random search"].run(matcher, targets[0].audio, Budget(seconds=2), 0)
    assert [step.seconds for step in steps] == [1] * POPULATION + [2] * POPULATION
    assert Budget(seconds=20).checkpoints == (1, 3, 10, 20) and Budget(100).checkpoints == (10, 32, 100)


def test_results_are_kept_while_they_fit(tmp_path, targets, monkeypatch):
    methods, run = ["random search", "GA from the nearest"], functools.partial(shootout, "dexed", workers=1)
    named = {"clips": targets[:1], "others": targets[1:]}
    table = run(named, methods, tmp_path, Budget(40))
    assert len(table) == 2 * 2 * 3 and sorted(set(table["at"])) == [10, 32, 40]
    last = table[table["at"] == 40]
    assert np.isfinite(last[[*METRICS, "distance", "first", "tail", "attack"]]).all(axis=None)
    np.testing.assert_allclose(last["renders"], 40)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(written) == 4
    assert run(named, methods[::-1], tmp_path, Budget(40)).shape == table.shape
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == written
    monkeypatch.setattr(module, "code_digest", lambda _: "another search")
    run(named, methods[:1], tmp_path, Budget(40))
    assert sum(path.stat().st_mtime_ns != at for path, at in written.items()) == 2

    shown = against(table, "random search")
    assert shown.columns.tolist() == ["10", "32", "40"] and "[" in shown.loc["GA from the nearest", "40"]
    assert "[" not in shown.loc["random search", "40"]
    assert means(table).loc["random search", 40] == pytest.approx(
        last[last["method"] == "random search"]["distance"].mean()
    )
    assert "difference" in crossed(table, ("random search", 10), ("GA from the nearest", 40), "MSS")
    assert noticed(table).shape == (2, 4)
    axes = plots.race(means(table), "distance", "renders").axes[0]
    assert axes.get_xscale() == "log" and len(axes.lines) == 2
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "32", "40"]


def test_ours_is_measured_like_the_others(tmp_path, targets):
    table = shootout("dexed", {"clips": targets[:1]}, [OUR], tmp_path, Budget(60), workers=1)
    assert 0 < table["renders"].max() <= 60 and (table["method"] == OUR).all()
    moves = {name.split()[1] for name in ALONE}
    assert moves == {name.split()[1] for name in LEFT_OUT} and len(moves) == len(ALONE) > 5


def test_candidates_are_compared_with_each_other(matcher, targets):
    match = matcher.match(targets[0].audio, renders=24)
    gaps = spread(match, 3)
    assert gaps.shape == (3, 3) and np.isnan(np.diag(gaps)).all()
    np.testing.assert_array_equal(gaps, gaps.T)
    assert (gaps.to_numpy()[np.triu_indices(3, 1)] > 0).all()


def tone(hz: float, attack: float, decay: float) -> np.ndarray:
    """A sawtooth-like tone `(1, samples)` of 4 s that rises for `attack` seconds, then falls by `decay` dB a second."""
    t = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    wave = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 9))
    level = np.minimum(t / attack, 10 ** (-decay * np.maximum(t - attack, 0) / 20))
    return (0.2 * level * wave)[None].astype(np.float32)


def test_what_is_heard_first():
    target = tone(220, 0.02, 20)
    same = heard(target, target)
    assert abs(same.cents) < 0.01 and same.tail == 0 and same.attack == 1
    other = heard(target, 3 * tone(220 * 2 ** (50 / 1200), 0.2, 2))
    assert other.cents == pytest.approx(50, abs=2)
    assert 35 < other.tail < 60 and 5 < other.attack < 12
    assert attack_time(tone(220, 0.5, 1)) == pytest.approx(0.45, abs=0.03)
    noise = np.random.default_rng(0).standard_normal((1, 4 * SAMPLE_RATE)).astype(np.float32)
    assert np.isnan(heard(noise, target).cents) and heard(target, noise).cents == np.inf


def test_the_song_of_a_recording_is_a_midi_file():
    song = _song(Recording(40, 69, 90, 2.5))
    assert (
        song[:4] == b"MThd"
        and song[14:18] == b"MTrk"
        and int.from_bytes(song[18:22], "big") == len(song) - 22
    )
    assert bytes([0xC0, 40]) in song and bytes([0x90, 69, 90]) in song
    assert bytes([0x99, 38, 100]) in _song(Recording(DRUMS, 38, 100, 1.0))
