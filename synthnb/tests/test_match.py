"""The matcher on a model that knows nothing: ranking, refining, time, interrupts, workers, and the files it leaves."""

import copy
import json

import numpy as np
import pytest
import soundfile
import torch

from synthnb.data.library import Library
from synthnb.data.shards import open_split
from synthnb.features import log_mel
from synthnb.metrics import Distance, all_metrics
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.search.matcher import Matcher, gain
from synthnb.sound import SAMPLE_RATE, UnusableSound
from synthnb.space import Note

NOTE = Note(60, 100, 0.0, 0.4)


@pytest.fixture(scope="module")
def matcher(short_space):
    torch.manual_seed(0)
    settings = ModelSettings(sound=32, dim=64, hidden=64, depth=1)
    model = FlowModel(short_space, settings, torch.full((1, 64, 1), -40.0), torch.full((1, 64, 1), 20.0))
    return Matcher(model.eval().requires_grad_(False), workers=1)


@pytest.fixture(scope="module")
def target(synth, patches):
    """A bright sound that the synth made, `(1, samples)` of half a second."""
    audio = synth.render(patches[0][0], NOTE, 0.5)[:1]
    assert np.abs(audio).max() > 0.01
    return audio


@pytest.fixture(scope="module")
def found(matcher, target):
    """One match, read only."""
    return matcher.match(target, candidates=6, seconds=0.5, steps=2)


def vectors(matcher, count=5):
    rng = np.random.default_rng(3)
    return np.stack([matcher.space.encode(*matcher.space.sample(rng)) for _ in range(count)])


@pytest.fixture
def knowing(matcher, short_dataset):
    """A matcher whose model has a library."""
    model = copy.copy(matcher.model)
    model.library = Library.build(short_dataset, workers=1)
    return Matcher(model, workers=1)


def proposed(matcher, target, count, seed=0, **settings):
    """All that is proposed: origins, vectors and distances."""
    steps = list(matcher.propose(target, Distance(target), count, seed, **settings))
    origins = [origin for origin, vectors, _ in steps for _ in vectors]
    return origins, *(np.concatenate(part) for part in list(zip(*steps))[1:])


def test_proposals_depend_on_the_seed_alone(matcher, target):
    (origins, first, _), (_, again, _), (_, other, _) = (
        proposed(matcher, target, 14, seed, steps=2) for seed in (1, 1, 2)
    )
    assert origins == ["noise"] * 8 + ["edit"] * 6
    assert first.shape == (14, matcher.space.width)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first, axis=0)) == 14


def test_the_best_so_far_is_edited(matcher, target):
    edited = []

    def edit(sound, vector, count, seed):
        assert sound is target
        edited.append((vector, count))
        return vectors(matcher, 20)[len(edited) :][:count]

    _, rows, values = proposed(matcher, target, 18, edit=edit)
    assert [count for _, count in edited] == [1] * 10
    for done, (source, _) in enumerate(edited, 8):
        np.testing.assert_array_equal(source, rows[values[:done].argmin()])


def test_a_search_begins_with_what_sounds_alike_in_the_library(knowing, short_dataset):
    with open_split(short_dataset / "train.h5") as file:
        vector = file["param_array"][6]
    space = knowing.space
    audio = knowing.synth.render(*space.decode(vector), space.seconds)[:1]
    origins, rows, values = proposed(knowing, audio, 12, steps=2)
    assert origins == ["library"] * 8 + ["edit"] * 4
    np.testing.assert_array_equal(rows[0], vector)
    assert values[0] == pytest.approx(0, abs=1e-6) and values[1:].min() > 0.01
    match = knowing.match(audio, 12, seconds=0, steps=2)
    assert match.best is match.first and match.best.origin == "library"
    assert [renders for _, renders, _ in match.history] == [8, 9, 10, 11, 12]


def test_an_edit_keeps_most_of_its_source(knowing, target):
    source = vectors(knowing, 1)[0]
    edits = knowing.edit(target, source, 50, seed=1)
    assert (
        0.5 < (np.abs(edits - source) < 1e-3).mean() < 0.99
    )  # before it learns, too, it keeps most of a source
    np.testing.assert_array_equal(edits, knowing.edit(target, source, 50, seed=1))


def test_candidates_are_ranked_by_their_distance(matcher, target):
    match = matcher.match(target, candidates=6, seconds=0, steps=2)
    distances = [c.distance for c in match.candidates]
    assert len(distances) == 6 and distances == sorted(distances)
    assert {c.origin for c in match.candidates} == {"noise"}
    assert match.best is match.first is match.candidates[0]
    assert [(renders, distance) for _, renders, distance in match.history] == [(6, distances[0])]
    renders = np.stack([match.audio(c, level=False) for c in match.candidates])
    np.testing.assert_allclose(Distance(target)(renders), distances)
    assert list(match.table(4)["distance"]) == distances[:4]
    assert list(match.table(4)) == ["origin", "distance", "pitch", "MSS", "wMFCC", "SOT", "RMS"]


def test_a_search_only_gets_better_and_can_be_followed(matcher, target):
    seen = []
    match = matcher.match(
        target, 6, 0.5, progress=lambda m: seen.append((m.history[-1], m.best.distance)), steps=2
    )
    seconds, renders, distance = zip(*match.history)
    assert list(distance) == sorted(distance, reverse=True)
    assert list(seconds) == sorted(seconds) and list(renders) == sorted(renders)
    assert [row for row, _ in seen] == match.history
    assert [best for _, best in seen] == list(distance)
    assert match.best.distance == distance[-1] <= match.first.distance == distance[0]


def test_refining_finds_its_way_back_from_a_perturbed_patch(matcher, target, patches):
    space = matcher.space
    true = space.encode(patches[0][0], NOTE)
    quantiles = space.to_quantiles(true)
    columns = [space.columns[p.name].start for p in space if p.name.endswith(("output_level", "feedback"))]
    shift = np.random.default_rng(0).uniform(-0.25, 0.25, len(columns))
    quantiles[columns] = np.clip(quantiles[columns] + shift, 0.01, 0.99)
    near = space.from_quantiles(quantiles)
    distance = Distance(target)
    start = matcher.distances(distance, near[None])[0]
    search = matcher.refine(distance, near, float("inf"), seed=0)
    best = min(values.min() for (_, values), _ in zip(search, range(25)))
    assert start > 0.1
    assert best < 0.7 * start


def test_refining_repeats_and_leaves_the_global_generator_alone(matcher, target):
    start = vectors(matcher, 1)[0]
    distance = Distance(target)

    def first_two(seed):
        search = matcher.refine(distance, start, float("inf"), seed)
        return np.concatenate([next(search)[0], next(search)[0]])

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    a, b, other = first_two(0), first_two(0), first_two(1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, other)


def test_refining_keeps_categories_and_ranges(matcher, target):
    start = vectors(matcher, 1)[0]
    start[matcher.space.columns["start"]] = 0.0  # on the very edge of the range
    population, _ = next(matcher.refine(Distance(target), start, float("inf")))
    for p in matcher.space:
        if p.kind == "categorical":
            at = matcher.space.columns[p.name]
            np.testing.assert_array_equal(population[:, at], np.tile(start[at], (len(population), 1)))
    assert population.min() >= 0 and population.max() <= 1


def test_the_time_for_refining_is_kept(matcher, target):
    seconds = [row[0] for row in matcher.match(target, 4, 1.0, steps=1).history]
    assert seconds[-1] - seconds[0] >= 1.0
    assert seconds[-2] - seconds[0] < 1.5  # no population of renders begins after the deadline


def test_workers_change_nothing(matcher, target):
    two = Matcher(matcher.model, workers=2)
    rows = vectors(matcher, 5)
    for audio in (
        target,
        target[:, ::-1].copy(),
    ):  # a second target, which the workers must not take for the first
        distance = Distance(audio)
        alone = matcher.distances(distance, rows)
        np.testing.assert_allclose(two.distances(distance, rows), alone, rtol=1e-6)
        np.testing.assert_allclose(two.distances(distance, rows[:1]), alone[:1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 22_050), (2, 22_050)])
def test_a_target_gets_the_channels_of_the_synth(matcher, shape):
    audio = np.random.default_rng(0).normal(0, 0.1, shape)
    prepared = matcher.prepare_target(audio)
    assert prepared.shape == (1, 22_050) and prepared.dtype == np.float32
    np.testing.assert_allclose(prepared[0], audio.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("decibels", [-41, -50, -59])
def test_a_very_quiet_recording_is_matched_like_the_same_at_full_scale(matcher, target, decibels):
    loud = target / np.abs(target).max()
    quiet = (loud * 10 ** (decibels / 20)).astype(np.float32)
    full, raised = (matcher.match(audio, candidates=4, seconds=0, steps=2) for audio in (loud, quiet))
    np.testing.assert_array_equal(full.target, loud)  # what is loud enough stays as it is
    np.testing.assert_allclose(raised.target, loud / 2, rtol=0, atol=1e-6)
    mels = [log_mel(torch.from_numpy(match.target)) for match in (raised, full)]
    torch.testing.assert_close(*mels, rtol=0, atol=0.01)
    for a, b in zip(raised.candidates, full.candidates):
        np.testing.assert_allclose(a.vector, b.vector, rtol=0, atol=1e-3)
        assert a.patch == b.patch and a.distance == pytest.approx(b.distance, abs=1e-3)
    assert raised.metrics()["MSS"] == pytest.approx(full.metrics()["MSS"], abs=0.01)


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
        matcher.match(np.full_like(target, np.nan))
    with pytest.raises(UnusableSound, match="mixed to mono: is silent"):
        matcher.match(np.concatenate([target, -target]))


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupt_keeps_what_was_found(matcher, target, after):
    def interrupt(match):
        if len(match.history) == after:
            raise KeyboardInterrupt

    match = matcher.match(target, 4, 30, progress=interrupt, steps=1)
    assert len(match.history) == after
    assert match.best.distance == match.history[-1][2]


def test_an_interrupt_before_anything_was_found_passes_through(matcher, target, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(matcher, "distances", interrupted)
    with pytest.raises(KeyboardInterrupt):
        matcher.match(target, 4, 30, steps=1)


def test_saved_files_hold_the_match(tmp_path, matcher, found, target):
    paths = found.save(tmp_path / "new" / "folder", "Vibes 1")
    assert sorted(paths) == ["match", "preset", "report", "target"]
    assert paths["preset"].name == "Vibes_1.syx"
    assert matcher.synth.load_bank(paths["preset"]) == [("Vibes 1", found.best.patch)]
    for kind, audio in (("target", target), ("match", found.audio())):
        samples, rate = soundfile.read(paths[kind], dtype="float32", always_2d=True)
        assert rate == SAMPLE_RATE
        np.testing.assert_array_equal(samples.T, audio)
    report = json.loads(paths["report"].read_text())
    expected = all_metrics(target, found.audio())
    assert report["distances"] == {name: round(value, 4) for name, value in expected.items()}
    assert report["distance"] == round(found.best.distance, 4)
    assert report["first"] == round(found.first.distance, 4)
    assert report["renders"] == found.history[-1][1]
    assert report["patch"] == found.best.patch and report["note"] == found.best.note._asdict()
    assert (report["space"], report["preset"]) == (found.space.name, "Vibes_1.syx")


def test_any_candidate_can_be_saved(tmp_path, matcher, found):
    last = found.candidates[-1]
    paths = found.save(tmp_path, candidate=last)
    assert matcher.synth.load_preset(paths["preset"]) == last.patch
    assert json.loads(paths["report"].read_text())["distance"] == round(last.distance, 4)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../Ünder / Über\n", "Ünder_Über.syx"),
        ("", "match.syx"),
        ("...", "match.syx"),
        ("x" * 400, "x" * 60 + ".syx"),
    ],
)
def test_odd_names_stay_in_the_folder(tmp_path, matcher, found, name, file):
    preset = found.save(tmp_path, name)["preset"]
    assert preset == tmp_path / file
    assert matcher.synth.load_preset(preset) == found.best.patch


def test_differences_name_what_departs_from_the_default_patch(found):
    table, default = found.differences(), found.space.default_patch
    changed = {name for name, value in found.best.patch.items() if value != default[name]}
    assert set(table["parameter"]) == changed
    assert all(found.best.patch[row.parameter] == row.value != row.default for row in table.itertuples())


def test_a_match_is_brought_to_the_level_of_its_target(found, target):
    def rms(audio):
        return np.sqrt(np.mean(np.square(audio, dtype=np.float64)))

    assert rms(found.audio()) == pytest.approx(rms(target), rel=1e-4)
    assert found.audio(level=False).shape == target.shape
    assert gain(target, np.zeros_like(target)) == gain(np.zeros_like(target), target) == 1.0
