"""A match: what it says and shows, how different its candidates are, and the files that it writes."""

import copy
import errno
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from synthnb.features import coarse
from synthnb.metrics import all_metrics
from synthnb.pitch import Pitch
from synthnb.search.candidate import at_key
from synthnb.search.files import output_paths
from synthnb.search.match import APART, Match, gain
from synthnb.search.population import Population
from synthnb.sound import SAMPLE_RATE
from synthnb.space import Note

NOTE = Note(60, 100, 0.0, 0.4)


@pytest.fixture(scope="module")
def found(matcher, target):
    """One match, read only."""
    return matcher.match(target, renders=100)


def holding(found, candidates):
    """A match of other candidates than those that were found."""
    state = copy.copy(found.state)
    state.population = Population(found.space)
    for candidate in candidates:
        state.population.add(candidate)
    return replace(found, state=state)


def test_candidates_are_told_in_a_table(found):
    table = found.table(4)
    assert list(table) == ["origin", "distance", "key", "cents", "MSS", "wMFCC", "SOT", "RMS"]
    assert list(table["distance"]) == [c.distance for c in found.candidates[:4]]
    assert table.loc[1, "MSS"] == found.metrics()["MSS"] and list(table.index) == [1, 2, 3, 4]
    assert found.seconds == found.history[-1][0]


def test_different_candidates_differ_more_than_the_first_and_begin_with_the_best(found):
    def apart(candidates):
        mels = [coarse(found.state.mel_of(c)[None]) for c in candidates]
        mels = [mel - mel.max() for mel in mels]
        far = [[float((a - b).clamp(-60, 60).abs().mean()) for b in mels] for a in mels]
        return np.array(far)[np.triu_indices(len(mels), 1)]

    chosen, first = found.different(6), found.candidates[:6]
    assert chosen[0] is found.best and len(chosen) == 6
    assert apart(chosen).min() >= APART > apart(first).min()
    assert apart(chosen).mean() > apart(first).mean()
    assert apart(most := found.different(1000)).min() >= APART  # what sounds like another is left out
    assert len(most) < len(found.candidates) and found.different(1) == [found.best]


def test_saved_files_hold_the_match(tmp_path, matcher, found, target):
    paths = found.save(tmp_path / "new" / "folder", "Vibes 1")
    assert sorted(paths) == ["match", "picture", "preset", "report", "search", "target"]
    assert paths["preset"].name == "Vibes_1.syx" and not paths["picture"].exists()
    for kind, audio in (("target", target), ("match", found.audio())):
        samples, rate = soundfile.read(paths[kind], dtype="float32", always_2d=True)
        assert rate == SAMPLE_RATE
        np.testing.assert_array_equal(samples.T, audio)
    report = json.loads(paths["report"].read_text())
    expected = all_metrics(target, found.audio())
    assert report["distances"] == {name: round(value, 4) for name, value in expected.items()}
    assert report["distance"] == round(found.best.distance, 4)
    assert report["first"] == round(found.history[0][2], 4)
    assert report["renders"] == found.history[-1][1]
    assert report["patch"] == found.best.patch and report["note"] == found.best.note._asdict()
    assert (report["space"], report["preset"]) == (found.space.name, "Vibes_1.syx")
    assert report["how_to_load"] == [*matcher.synth.how_to_load, found.how_to_play()]
    assert matcher.load(paths["search"]).best.patch == found.best.patch


def test_a_preset_is_a_bank_of_the_different_candidates_for_one_key(tmp_path, matcher, found):
    best = found.best
    farther = [best.distance * (1 + share) for share in (0.1, 0.2, 0.3)]
    changed = {**best.patch, "feedback": (best.patch["feedback"] + 1) % 8}
    other = replace(best, patch=changed, distance=farther[2])
    elsewhere = replace(
        other, distance=farther[1], patch={**best.patch, "lfo_speed": 7}, note=best.note._replace(pitch=1)
    )
    match = holding(found, [best, replace(best, distance=farther[0]), elsewhere, other])
    voices = matcher.synth.load_bank(match.save(tmp_path, "Vibes")["preset"])
    assert len(voices) == 32 and voices[0] == ("Vibes", best.patch) and voices[1][1] == other.patch
    assert not {tuple(elsewhere.patch.values()), tuple(best.patch.values())} & {
        tuple(patch.values()) for _, patch in voices[1:]
    }
    (voice,) = matcher.synth.load_bank(match.save(tmp_path, "Vibes", other, single=True)["preset"])
    assert voice == ("Vibes", other.patch)


def test_any_candidate_can_be_saved(tmp_path, matcher, found):
    last = found.candidates[-1]
    paths = found.save(tmp_path, candidate=last)
    assert matcher.synth.load_preset(paths["preset"]) == last.patch
    assert json.loads(paths["report"].read_text())["distance"] == round(last.distance, 4)


@pytest.mark.parametrize(
    "file", ["target.wav", "match.wav", "match.png", "bass.syx", "match.npz", "match.json"]
)
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


# --- which key to press -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("key", "cents", "said"),
    [
        (69, 0.4, "Press A4 (69); in tune."),
        (69, -61.2, "Press A4 (69); 61 cents flat."),
        (81, 3.3, "Press A5 (81) for the A4 (69) that was recorded; 3 cents sharp."),
        (69, None, "Press A4 (69); what sounds is unpitched."),
    ],
)
def test_it_is_said_what_to_press(found, monkeypatch, key, cents, said):
    monkeypatch.setattr(Match, "pitch", Pitch(440.0, 1.0))
    monkeypatch.setattr(Match, "cents", lambda *_: cents)
    assert found.how_to_play(replace(found.best, note=NOTE._replace(pitch=key))) == said


def test_what_is_unpitched_is_said_to_be(found):
    assert found.key is None and found.cents() is None
    assert found.how_to_play().endswith("; the recording is unpitched.")
