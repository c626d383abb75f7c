"""The matcher on a model that knows nothing: ranking, key, refining, budgets, interrupts, workers, and its files."""

import copy
import errno
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from synthnb.data.library import Library
from synthnb.data.shards import open_split
from synthnb.features import log_mel
from synthnb.metrics import Distance, all_metrics
from synthnb.models.flow import FlowModel, ModelSettings
from synthnb.pitch import Pitch, find_pitch
from synthnb.search.distance import TunedDistance
from synthnb.search.match import at_key, gain, output_paths
from synthnb.search.matcher import Matcher
from synthnb.sound import SAMPLE_RATE, UnusableSound
from synthnb.space import Note

NOTE = Note(60, 100, 0.0, 0.4)


@pytest.fixture(scope="module", autouse=True)
def unpitched():
    """Nothing has a pitch, unless a test says otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthnb.search.distance.find_pitch", lambda audio: None)
        yield


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
    model.library = Library.build(short_dataset)
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

    def edit(mel, vector, count, seed):
        torch.testing.assert_close(mel, log_mel(torch.from_numpy(target)))
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
    assert [renders for _, renders, _ in match.history][:5] == [8, 9, 10, 11, 12]


def test_an_edit_keeps_most_of_its_source(knowing, target):
    source = vectors(knowing, 1)[0]
    mel = log_mel(torch.from_numpy(target))
    edits = knowing.edit(mel, source, 50, seed=1)
    assert (
        0.5 < (np.abs(edits - source) < 1e-3).mean() < 0.99
    )  # before it learns, too, it keeps most of a source
    np.testing.assert_array_equal(edits, knowing.edit(mel, source, 50, seed=1))


def test_candidates_are_ranked_by_their_distance(matcher, target):
    match = matcher.match(target, candidates=6, seconds=0, steps=2)
    distances = [c.distance for c in match.candidates]
    assert len(distances) == 6 and distances == sorted(distances)
    assert {c.origin for c in match.candidates} == {"noise"}
    assert match.best is match.first is match.candidates[0]
    assert [(renders, distance) for _, renders, distance in match.history] == [(6, distances[0])]
    renders = np.stack([c.audio for c in match.candidates])
    np.testing.assert_allclose(Distance(target)(renders), distances)
    assert list(match.table(4)["distance"]) == distances[:4]
    assert list(match.table(4)) == ["origin", "distance", "key", "cents", "MSS", "wMFCC", "SOT", "RMS"]


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
    search = matcher.refine(distance, near)
    best = min(values.min() for (_, values), _ in zip(search, range(25)))
    assert start > 0.1
    assert best < 0.7 * start


def test_refining_repeats_and_leaves_the_global_generator_alone(matcher, target):
    start = vectors(matcher, 1)[0]
    distance = Distance(target)

    def first_two(seed):
        search = matcher.refine(distance, start, seed=seed)
        return np.concatenate([next(search)[0], next(search)[0]])

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    a, b, other = first_two(0), first_two(0), first_two(1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, other)


def test_refining_keeps_categories_and_ranges(matcher, target):
    start = vectors(matcher, 1)[0]
    start[matcher.space.columns["start"]] = 0.0  # on the very edge of the range
    population, _ = next(matcher.refine(Distance(target), start))
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
    assert sorted(paths) == ["match", "picture", "preset", "report", "target"]
    assert paths["preset"].name == "Vibes_1.syx" and not paths["picture"].exists()
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
    assert report["how_to_load"] == [*matcher.synth.how_to_load, found.how_to_play()]


def test_a_preset_is_a_bank_of_the_different_candidates_for_one_key(tmp_path, matcher, found):
    best = replace(found.best, origin="edit")
    other = replace(best, patch={**best.patch, "feedback": (best.patch["feedback"] + 1) % 8})
    elsewhere = replace(other, patch={**best.patch, "lfo_speed": 7}, note=best.note._replace(pitch=1))
    match = replace(found, candidates=[best, best, elsewhere, other])
    voices = matcher.synth.load_bank(match.save(tmp_path, "Vibes")["preset"])
    assert len(voices) == 32 and voices[0] == ("Vibes", best.patch) and voices[1][1] == other.patch
    assert not {tuple(match.candidates[2].patch.values()), tuple(best.patch.values())} & {
        tuple(patch.values()) for _, patch in voices[1:]
    }
    (voice,) = matcher.synth.load_bank(match.save(tmp_path, "Vibes", other, single=True)["preset"])
    assert voice == ("Vibes", other.patch)


def test_any_candidate_can_be_saved(tmp_path, matcher, found):
    last = found.candidates[-1]
    paths = found.save(tmp_path, candidate=last)
    assert matcher.synth.load_preset(paths["preset"]) == last.patch
    assert json.loads(paths["report"].read_text())["distance"] == round(last.distance, 4)


@pytest.mark.parametrize("file", ["target.wav", "match.wav", "match.png", "bass.syx", "match.json"])
def test_no_file_is_overwritten_that_is_not_of_a_match(tmp_path, found, file):
    (tmp_path / file).write_text("somebody's own")
    recording = tmp_path / file
    with pytest.raises(FileExistsError, match="not its own; choose another folder"):
        found.save(tmp_path, "bass", recording=recording)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["somebody's own"]
    if file != "match.json":  # by which an earlier match is known
        with pytest.raises(FileExistsError, match="not its own"):
            found.save(tmp_path, "bass")


def test_a_match_is_overwritten_by_the_next_but_never_its_own_recording(tmp_path, matcher, found):
    paths = found.save(tmp_path)
    found.save(tmp_path, recording=tmp_path / "bass.wav")
    with pytest.raises(FileExistsError, match="not its own"):
        output_paths(tmp_path, "match", matcher.synth, paths["target"])


def test_a_folder_that_cannot_be_written_is_told_before_the_search(tmp_path, matcher, monkeypatch):
    def refused(dir):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/tmp123")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(PermissionError, match="Permission denied; choose another folder") as error:
        output_paths(tmp_path, "match", matcher.synth)
    assert error.value.filename == str(tmp_path)


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
    np.testing.assert_allclose(found.audio(), found.best.audio * gain(target, found.best.audio))
    assert gain(target, np.zeros_like(target)) == gain(np.zeros_like(target), target) == 1.0


# --- in key -----------------------------------------------------------------------------------------------------------


def sine(hz):
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(22_050) / SAMPLE_RATE, dtype=np.float32)[None]


def noise():
    return np.random.default_rng(0).normal(0, 0.1, (1, 22_050)).astype(np.float32)


@pytest.fixture
def pitched(monkeypatch):
    monkeypatch.setattr("synthnb.search.distance.find_pitch", find_pitch)


def test_a_patch_sounds_the_same_with_another_key(synth, patches):
    for patch, note in patches[:10]:
        moved, at = at_key(synth, patch, note, 60)
        assert (at.pitch - 60) % 12 == 0 and 0 <= moved["transpose"] <= 48
        np.testing.assert_array_equal(synth.render(moved, at, 0.5), synth.render(patch, note, 0.5))


def test_a_key_that_a_patch_does_not_reach_is_octaves_away(synth, space):
    low = {**space.default_patch, "transpose": 0}
    assert at_key(synth, low, NOTE, 50)[1].pitch == 50
    moved, note = at_key(synth, low, NOTE, 70)
    assert (note.pitch, moved["transpose"]) == (58, 2)


def test_a_synth_that_cannot_transpose_keeps_its_note(space):
    class Fixed:
        def transpose(self, patch, semitones):
            return None

    assert at_key(Fixed(), space.default_patch, NOTE, 72) == (space.default_patch, NOTE)


@pytest.mark.parametrize("played", [48, 55, 60, 71, 72])
def test_the_key_that_was_recorded_is_the_key_to_press(matcher, synth, monkeypatch, pitched, played):
    space = matcher.space
    audio = synth.render(space.default_patch, NOTE, 0.5)[:1]
    off = space.encode(space.default_patch, NOTE._replace(pitch=played))
    monkeypatch.setattr(matcher, "start", lambda mel, count, seed: off[None])
    match = matcher.match(audio, candidates=1, seconds=0)
    assert match.key == 60 and match.best.note.pitch == 60
    assert match.best.distance == pytest.approx(0, abs=1e-6) and abs(match.cents()) < 5
    assert match.best.origin == ("noise" if played == 60 else "moved")
    assert match.how_to_play() == "Press C4 (60); in tune."
    sound = synth.render(match.best.patch, match.best.note, 0.5)[:1]
    np.testing.assert_array_equal(sound, match.best.audio)


def test_what_is_in_tune_is_refined_without_being_transposed(matcher, monkeypatch, pitched):
    space, held, refine = matcher.space, [], matcher.refine
    audio = matcher.synth.render(space.default_patch, NOTE, 0.5)[:1]
    monkeypatch.setattr(matcher, "refine", lambda *given: held.append(given[-1]) or refine(*given))
    for note, names in ((NOTE, {"pitch", "transpose"}), (NOTE._replace(pitch=67), ())):
        vector = space.encode(space.default_patch, note)
        monkeypatch.setattr(matcher, "start", lambda *_, vector=vector: vector[None])
        monkeypatch.setattr(matcher, "transpose", lambda *_: None)
        matcher.match(audio, 1, seconds=0)
        assert held.pop() == names
    start = vectors(matcher, 1)[0]
    population, _ = next(refine(Distance(audio), start, held={"pitch", "transpose"}))
    kept = [space.columns[name].start for name in ("pitch", "transpose")]
    np.testing.assert_allclose(population[:, kept], np.tile(start[kept], (len(population), 1)), atol=1e-6)
    assert population.std(axis=0).max() > 0


def test_what_is_out_of_tune_is_farther_by_up_to_one(pitched):
    plain, tuned = Distance(sine(440)), TunedDistance(sine(440))
    renders = np.stack([sine(hz) for hz in (440, 432.446, 466, 220)] + [hiss := noise()])
    assert tuned.pitch.key == 69
    np.testing.assert_allclose(tuned(renders) - plain(renders), [0, 0.3, 1, 1, 1], atol=0.05)
    assert [tuned.cents(x) for x in renders[[0, 3]]] == pytest.approx([0, -1200], abs=3)
    assert tuned.cents(hiss) is None
    np.testing.assert_array_equal(TunedDistance(hiss)(renders), Distance(hiss)(renders))


def test_refining_is_told_to_keep_mss(target):
    plain, other = TunedDistance(target), target[None, :, ::-1].copy()
    (mss,), (free,) = plain.mss(other), plain(other)
    assert plain.bounded(mss + 1)(other)[0] == free and plain.bounded(mss - 0.5)(other)[0] > free + 0.3
    assert plain(other)[0] == free


def test_it_is_said_what_to_press(found):
    match = replace(found, pitch=Pitch(440.0, 1.0))

    def said(key, cents):
        return match.how_to_play(replace(found.best, note=NOTE._replace(pitch=key), cents=cents))

    assert said(69, 0.4) == "Press A4 (69); in tune."
    assert said(69, -61.2) == "Press A4 (69); 61 cents flat."
    assert said(81, 3.3) == "Press A5 (81) for the A4 (69) that was recorded; 3 cents sharp."
    assert said(69, None) == "Press A4 (69); what sounds is unpitched."


def test_what_is_unpitched_is_said_to_be(found):
    assert found.key is None and found.cents() is None
    assert found.how_to_play().endswith("; the recording is unpitched.")


# --- what is ranked is what is kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mss", "origin"), [(1.9, "refined"), (2.1, "noise")])
def test_what_is_refined_is_kept_only_if_its_mss_is_no_worse(
    matcher, target, patches, monkeypatch, mss, origin
):
    better, measured = (
        matcher.space.encode(patches[0][0], NOTE),
        iter([2.0, mss]),
    )  # the first is of what was proposed
    monkeypatch.setattr(matcher, "refine", lambda *_: iter([(better[None], np.array([0.0]))]))
    monkeypatch.setattr(Distance, "mss", lambda *_: [next(measured)])
    assert matcher.match(target, 4, seconds=0, steps=1).best.origin == origin


def test_a_synth_that_never_repeats_is_ranked_by_what_is_kept(matcher, target, monkeypatch, tmp_path):
    rng, render, count = np.random.default_rng(0), matcher.synth.render, []

    def noisy(*arguments):
        count.append(arguments)
        return render(*arguments) + rng.normal(0, 0.01, (2, target.shape[1])).astype(np.float32)

    fresh = Matcher(matcher.model, workers=1)
    monkeypatch.setattr(fresh.synth, "render", noisy)
    match = fresh.match(target, 12, renders=32, steps=1)
    for c in match.candidates:
        assert Distance(target)(c.audio[None])[0] == c.distance
    saved = soundfile.read(match.save(tmp_path)["match"], dtype="float32", always_2d=True)[0].T
    np.testing.assert_array_equal(saved, match.audio())
    assert (
        len(count) == match.history[-1][1] == 44
    )  # nothing is played twice, the source of the edits neither


def test_a_budget_of_renders_gives_the_same_on_a_slower_machine(matcher, target, monkeypatch):
    first = matcher.match(target, 4, renders=50, steps=1)
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    again = matcher.match(target, 4, renders=50, steps=1)
    assert first.history[-1][1] == again.history[-1][1] == 4 + 48
    assert [row[1:] for row in first.history] == [row[1:] for row in again.history]
    np.testing.assert_array_equal(first.best.vector, again.best.vector)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"candidates": 0}])
def test_settings_are_checked_before_the_work(matcher, target, wrong):
    with pytest.raises(ValueError, match="give 1 or more and 0 or more"):
        matcher.match(target, **wrong)
    with pytest.raises(ValueError, match="workers is 0; give 1 or more"):
        Matcher(matcher.model, workers=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu_proposes_from_the_cpu(matcher, target):
    model = copy.deepcopy(matcher.model).cuda()
    match = Matcher(model, workers=1).match(target, 10, seconds=0, steps=1)
    assert len(match.candidates) == 10
