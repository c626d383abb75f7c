"""The search with a model that knows nothing: budgets, seeds, what it keeps, several recordings, key, and its files."""

import copy
import itertools

import numpy as np
import pytest
import soundfile
import torch

from synthnb.data.library import Library
from synthnb.data.shards import open_split
from synthnb.features import log_mel
from synthnb.search.match import Match
from synthnb.search.matcher import FIRST, Matcher, MatchError
from synthnb.search.moves import FLOW, MOVES, tune
from synthnb.sound import UnusableSound
from synthnb.space import Note, ParameterSpace

NOTE = Note(60, 100, 0.0, 0.3)
WITHOUT = [name for name in MOVES if name not in FLOW]


@pytest.fixture
def knowing(model, short_dataset):
    """A matcher whose model has a library."""
    model = copy.copy(model)
    model.library = Library.build(short_dataset)
    return Matcher(model, workers=1)


def vectors_of(match):
    return np.stack([c.vector for c in match.candidates])


def steps_of(match):
    """Of its history, what doesn't depend on the machine."""
    return [step[1:] for step in match.history]


# --- budgets and seeds ------------------------------------------------------------------------------------------------


def test_a_search_begins_with_what_sounds_alike_in_the_library(knowing, short_dataset):
    with open_split(short_dataset / "train.h5") as file:
        vector = file["param_array"][6]
    audio = knowing.player.render(vector)
    match = knowing.match(audio, renders=FIRST)
    assert {c.origin for c in match.candidates} == {"library"} and steps_of(match)[0][0] == FIRST
    np.testing.assert_array_equal(match.best.vector, vector)
    assert match.best.distance == pytest.approx(0, abs=1e-6) and match.candidates[1].distance > 0.01


def test_without_a_library_it_begins_with_the_flow(matcher, target):
    match = matcher.match(target, seconds=0)
    assert steps_of(match) == [
        (FIRST, match.best.distance)
    ]  # the first are found however little time there is
    assert {c.origin for c in match.candidates} == {"noise"}


def test_a_search_only_gets_better_and_can_be_followed(matcher, target):
    seen = []
    match = matcher.match(
        target, renders=150, progress=lambda m: seen.append((m.history[-1], m.best.distance))
    )
    seconds, renders, distance = zip(*match.history)
    assert list(distance) == sorted(distance, reverse=True) and distance[-1] < distance[0]
    assert list(seconds) == sorted(seconds) and list(renders) == sorted(set(renders))
    assert seen == list(zip(match.history, distance))
    assert match.best is match.candidates[0] and match.best.distance == distance[-1]
    assert [c.distance for c in match.candidates] == sorted(c.distance for c in match.candidates)
    assert {c.origin for c in match.candidates} <= {*MOVES, "tune"}
    assert sum(match.credit.used.values()) <= 150 and sum(match.credit.earned.values()) > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_budget_of_renders_repeats_with_its_seed_on_a_slower_machine(matcher, target, monkeypatch, workers):
    first = matcher.match(target, renders=150, seed=3)
    clock = itertools.count(step=1000)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    again = Matcher(matcher.model, workers).match(target, renders=150, seed=3)
    assert first.history[-1][1] == 150
    assert steps_of(first) == steps_of(again)
    np.testing.assert_array_equal(vectors_of(first), vectors_of(again))


def test_another_seed_is_another_take(matcher, target):
    one, other = (matcher.match(target, renders=60, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.best.vector, other.best.vector)


@pytest.mark.parametrize("ticks", range(20, 27))
def test_seconds_are_kept_whenever_the_time_is_up(matcher, tone, monkeypatch, ticks):
    clock = itertools.count()  # every look at it takes a second
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    seconds = [row[0] for row in matcher.match(tone, seconds=ticks).history]
    assert seconds[-2] < ticks and seconds[-1] < ticks + 4  # no step begins after the deadline


def test_only_the_moves_that_are_named_compete(matcher, target, monkeypatch):
    match = matcher.match(target, renders=FIRST, moves=[])
    assert match.history[-1][1] == FIRST
    monkeypatch.setattr(matcher.model, "sample", None)  # which would be called by the others
    matcher.go_on(match, renders=80, moves=WITHOUT)
    assert match.credit.names == WITHOUT and match.history[-1][1] == FIRST + 80


def test_an_end_without_anything_new_is_an_end(matcher, target, monkeypatch):
    match = matcher.match(target, renders=30)
    monkeypatch.setitem(MOVES, "nudge", lambda state, count, rng: match.best.vector[None])
    assert matcher.go_on(match, seconds=60, moves=["nudge"]).history[-1][1] <= 31


def test_the_way_back_from_a_perturbed_patch_is_found(matcher, target, patches):
    space, rng = matcher.space, np.random.default_rng(0)
    quantiles = space.to_quantiles(space.encode(patches[0][0], NOTE._replace(end=0.4)))
    columns = [space.columns[p.name].start for p in space if p.name.endswith(("output_level", "feedback"))]
    quantiles[columns] = np.clip(quantiles[columns] + rng.uniform(-0.25, 0.25, len(columns)), 0.01, 0.99)
    match = Match(matcher.begin([target]))
    match.state.play(space.from_quantiles(quantiles)[None], "given")
    start = match.best.distance
    matcher.go_on(match, renders=400, moves=WITHOUT)
    assert start > 0.1 and match.best.distance < 0.6 * start


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seconds": -0.1}, "seconds -0.1"),
        ({"renders": -1}, "renders -1"),
        ({"renders": 0}, "renders 0"),
        ({"moves": ["nudge", "shake"]}, r"moves \['shake'\].*among noise, edit"),
        ({"velocities": [64, 100]}, "1 recordings and velocities"),
    ],
)
def test_settings_are_checked_before_the_work(matcher, target, wrong, said):
    with pytest.raises(ValueError, match=said):
        matcher.match(target, **wrong)


def test_so_are_workers_and_how_many_recordings(matcher):
    with pytest.raises(ValueError, match="workers is 0; give 1 or more"):
        Matcher(matcher.model, workers=0)
    with pytest.raises(ValueError, match="0 recordings"):
        matcher.match([])


# --- interrupts, going on, variations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupt_keeps_what_was_found(matcher, target, after):
    def interrupt(match):
        if len(match.history) == after:
            raise KeyboardInterrupt

    match = matcher.match(target, 30, progress=interrupt)
    assert len(match.history) == after and match.best.distance == match.history[-1][2]
    assert len(matcher.go_on(match, renders=20).history) > after


def test_an_interrupt_before_anything_was_found_passes_through(model, target, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    matcher = Matcher(model, workers=1)
    monkeypatch.setattr(matcher.player, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        matcher.match(target, 30)


def test_a_search_goes_on_where_it_was(matcher, target):
    one, other = (matcher.match(target, renders=60) for _ in range(2))
    before = list(one.history)
    assert matcher.go_on(one, renders=60) is one
    assert one.history[: len(before)] == before and one.history[-1][1] == 120
    seconds, _, distance = zip(*one.history)
    assert list(distance) == sorted(distance, reverse=True) and list(seconds) == sorted(seconds)
    matcher.go_on(other, renders=60)
    np.testing.assert_array_equal(vectors_of(one), vectors_of(other))


def test_variations_are_near_or_far_as_wished_and_change_nothing(matcher, tone):
    match = matcher.match(tone, renders=60)
    space, before, renders = match.space, match.candidates, match.state.renders
    match.state.genes.hold({"pitch", "transpose"})

    def far(strength):
        varied = matcher.vary(match, strength=strength, count=10, seed=1)
        assert len(varied) == 10 and {c.origin for c in varied} == {"varied"}
        assert {(c.note.pitch, c.patch["transpose"]) for c in varied} == {
            (match.best.note.pitch, match.best.patch["transpose"])
        }
        quantiles = space.to_quantiles(np.stack([match.best.vector, *(c.vector for c in varied)]))
        return np.abs(quantiles[1:] - quantiles[0]).mean()

    assert 0 < 5 * far(0.1) < far(0.8)
    assert match.candidates == before and match.state.renders == renders
    (of_last,) = matcher.vary(match, match.candidates[-1], strength=0.02, count=1)
    near = np.abs(vectors_of(match) - of_last.vector).mean(axis=1)
    assert near.argmin() == len(before) - 1
    for wrong in ({"strength": 0.0}, {"strength": 1.1}, {"count": 0}):
        with pytest.raises(ValueError, match="give above 0 up to 1, and 1 or more"):
            matcher.vary(match, **wrong)


def test_what_is_kept_is_loaded_and_gone_on_with(tmp_path, matcher, target):
    match = matcher.match(target, renders=60, seed=4, guidance=1.5)
    loaded = matcher.load(match.keep(tmp_path / "match.npz"))
    np.testing.assert_array_equal(loaded.target, match.target)
    np.testing.assert_array_equal(vectors_of(loaded), vectors_of(match))
    for a, b in zip(loaded.candidates, match.candidates):
        assert (a.patch, a.note, a.distance, a.origin) == (b.patch, b.note, b.distance, b.origin)
        np.testing.assert_array_equal(a.audio, b.audio)
    assert (loaded.history, loaded.seed, loaded.state.guidance) == (match.history, 4, 1.5)
    assert not len(loaded.state.population.new(vectors_of(match)))
    assert steps_of(matcher.go_on(loaded, renders=40))[: len(match.history)] == steps_of(match)
    assert loaded.history[-1][1] == 100 and loaded.best.distance <= match.best.distance


def test_what_is_no_match_is_not_loaded(tmp_path, matcher, target):
    path = matcher.match(target, renders=FIRST).keep(tmp_path / "match.npz")
    whole = path.read_bytes()
    (model := copy.copy(matcher.model)).space = ParameterSpace.parse(matcher.space.text + "\n# edited")
    other = Matcher(model, workers=1)
    with pytest.raises(MatchError, match=r"match\.npz was searched with another space than 'dexed' is now"):
        other.load(path)
    np.save(array := tmp_path / "array.npy", np.zeros(3))
    np.savez(arrays := tmp_path / "arrays.npz", vectors=np.zeros(3))
    flipped = whole[:1000] + bytes([whole[1000] ^ 8]) + whole[1001:]
    damaged = (b"", b"a text", whole[:200], whole[:-200], flipped, array.read_bytes(), arrays.read_bytes())
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(MatchError, match=r"match\.npz is no match, or damaged"):
            matcher.load(path)
    with pytest.raises(MatchError, match=r"none\.npz can't be read: No such file"):
        matcher.load(tmp_path / "none.npz")


# --- recordings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 22_050), (2, 22_050)])
def test_a_target_gets_the_channels_of_the_synth(matcher, shape):
    audio = np.random.default_rng(0).normal(0, 0.1, shape)
    prepared = matcher.prepare_target(audio)
    assert prepared.shape == (1, 22_050) and prepared.dtype == np.float32
    np.testing.assert_allclose(prepared[0], audio.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("decibels", [-41, -50, -59])
def test_a_very_quiet_recording_is_raised(matcher, target, decibels):
    loud = target / np.abs(target).max()
    np.testing.assert_array_equal(matcher.prepare_target(loud), loud)  # what is loud enough stays as it is
    raised = matcher.match(loud * np.float32(10 ** (decibels / 20)), renders=FIRST).target
    np.testing.assert_allclose(raised, loud / 2, rtol=0, atol=1e-6)
    mels = [log_mel(torch.from_numpy(audio)) for audio in (raised, loud)]
    torch.testing.assert_close(*mels, rtol=0, atol=0.01)
    np.testing.assert_array_equal(matcher.prepare_target(raised), raised)  # so that it can be loaded again


def test_channels_that_nearly_cancel_out_are_raised_too(matcher, target):
    loud = target / np.abs(target).max()
    prepared = matcher.prepare_target(np.concatenate([loud, -0.99 * loud]))
    np.testing.assert_allclose(prepared, loud / 2, rtol=0, atol=1e-5)


def test_targets_that_cannot_be_matched_are_refused(matcher, target):
    with pytest.raises(ValueError, match="22000 samples, 22050 are needed; use"):
        matcher.match(target[:, :22_000])
    with pytest.raises(UnusableSound, match="silent"):
        matcher.match(np.zeros_like(target))
    with pytest.raises(UnusableSound, match="NaN"):
        matcher.match([target, np.full_like(target, np.nan)])
    with pytest.raises(UnusableSound, match="mixed to mono: is silent"):
        matcher.match(np.concatenate([target, -target]))


@pytest.mark.parametrize(
    ("notes", "velocities"),
    [
        ([NOTE, NOTE._replace(pitch=67)], None),
        ([NOTE._replace(pitch=72), NOTE._replace(pitch=48, end=0.4)], None),
        ([NOTE._replace(velocity=40), NOTE._replace(velocity=120)], [40, 120]),
    ],
)
def test_notes_of_one_patch_have_that_patch_as_their_match(matcher, synth, space, notes, velocities):
    patch = {**space.default_patch, "op1_velocity_sensitivity": 7}
    sounds = [synth.render(patch, note, 0.5)[:1] for note in notes]
    state = matcher.begin(sounds, velocities)
    played = [recording.press(synth, patch, notes[0]) for recording in state.recordings]
    assert [note.pitch for _, note in played] == [note.pitch for note in notes]
    other = patch | {"op1_velocity_sensitivity": 0, "feedback": 7}
    vectors = np.stack([space.encode(each, notes[0]) for each in (patch, other)])
    found, plain = state.rank(vectors, "given")
    assert found.distance < 0.1 and found.distance < 0.3 * plain.distance
    assert found.note.pitch == notes[0].pitch and state.renders == 2 * 2
    if velocities:
        (swapped,) = matcher.begin(sounds, velocities[::-1]).rank(found.vector[None], "given")
        assert found.distance < 1e-6 < swapped.distance


def test_a_budget_counts_the_renders_of_all_recordings(matcher, target, tone, tmp_path):
    match = matcher.match([target, tone], renders=61, velocities=[100, 50])
    assert match.history[-1][1] == 60
    loaded = matcher.load(match.keep(tmp_path / "match.npz"))
    assert [r.press for r in loaded.state.recordings] == [r.press for r in match.state.recordings]
    np.testing.assert_array_equal(loaded.state.recordings[1].audio, tone)


# --- in key -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("played", [48, 55, 60, 71, 72])
def test_the_key_that_was_recorded_is_the_key_to_press(matcher, synth, tone, played):
    space = matcher.space
    match = Match(matcher.begin([tone]))
    off = space.encode(space.default_patch, Note(played, 100, 0.0, 0.4))
    match.state.play(off[None], "given")
    moved = tune(match.state, 8, np.random.default_rng(0))
    assert len(moved) == (played != 60) and not len(tune(match.state, 8, np.random.default_rng(0)))
    match.state.play(moved, "tune")
    assert match.key == 60 and match.best.note.pitch == 60 and abs(match.cents()) < 5
    assert match.best.distance == pytest.approx(0, abs=1e-6)
    assert match.how_to_play() == "Press C4 (60); in tune."
    np.testing.assert_array_equal(synth.render(match.best.patch, match.best.note, 0.5)[:1], match.best.audio)


def test_what_is_unpitched_is_not_tuned(matcher, target):
    match = matcher.match(target, renders=20)
    assert match.key is None and not len(tune(match.state, 8, np.random.default_rng(0)))


def test_what_is_in_tune_is_searched_on_without_being_transposed(matcher, tone):
    space = matcher.space
    for note, held in ((NOTE, {"pitch", "transpose"}), (NOTE._replace(pitch=67), set())):
        state = matcher.begin([tone])
        state.play(space.encode(space.default_patch, note)[None], "given")
        state.keep_key()
        names = [p.name for p in space]
        assert {name for name, free in zip(names, state.genes.free) if not free} == held


# --- what is ranked is what is kept -----------------------------------------------------------------------------------


def test_a_synth_that_never_repeats_is_ranked_by_what_is_kept(model, target, monkeypatch, tmp_path):
    rng, played = np.random.default_rng(0), []
    matcher = Matcher(model, workers=1)
    render = matcher.synth.render

    def noisy(*arguments):
        played.append(arguments)
        return render(*arguments) + rng.normal(0, 0.01, (2, target.shape[1])).astype(np.float32)

    monkeypatch.setattr(matcher.synth, "render", noisy)
    match = matcher.match(target, renders=100)
    assert len(played) == match.history[-1][1] == 100  # nothing is played twice
    distance = match.state.recordings[0].distance
    for c in match.candidates:
        assert distance(c.audio[None])[0] == pytest.approx(c.distance)
    saved = soundfile.read(match.save(tmp_path)["match"], dtype="float32", always_2d=True)[0].T
    np.testing.assert_array_equal(saved, match.audio())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu_proposes_from_the_cpu(model, target):
    match = Matcher(copy.deepcopy(model).cuda(), workers=1).match(target, renders=60)
    assert match.history[-1][1] == 60
