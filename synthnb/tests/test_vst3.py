"""Any VST3: finding it, the errors on the way, exactness, presets. Needs the mda plugins; skips without them."""

import os
import signal
import struct
from pathlib import Path

import numpy as np
import psutil
import pytest

from synthnb.space import Note, ParameterSpace, SpaceError
from synthnb.synths import PresetError, SynthError, SynthNotFound, open_synth
from synthnb.synths.find import FOLDERS_VARIABLE, find_plugin, folders
from synthnb.synths.survey import survey
from synthnb.synths.vst3 import index_by_key, preset_chunk, preset_file

TEXT = """
name: small
synth: vst3
plugin: {plugin}
seconds: 1.0
note:
  pitch: {{kind: integer, low: 36, high: 84, default: 60}}
  start: {{kind: continuous, low: 0.0, high: 1.0, default: 0.0}}
  end: {{kind: continuous, low: 0.0, high: 1.0, default: 0.5}}
  velocity: 100
base: {{{base}}}
parameters:
  mix: {{key: OSC Mix, kind: continuous, default: 1.0, module: osc}}
  cutoff: {{key: VCF Freq, kind: continuous, low: 0.2, high: 0.9, default: 0.9, module: vcf}}
  noise: {{key: Noise, kind: continuous, default: 0.0, module: osc}}
  glide: {{key: {glide}, kind: categorical, choices: {{poly: 0.1, mono: 0.6, mono glide: 0.95}}, module: osc}}
"""


def small(plugin="mda JX10", glide="Glide", base="Vibrato: 0.5") -> ParameterSpace:
    return ParameterSpace.parse(TEXT.format(plugin=plugin, glide=glide, base=base))


@pytest.fixture(scope="module")
def jx10():
    try:
        return open_synth(small())
    except SynthNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bundle(jx10):
    return find_plugin("mda JX10")[0]


@pytest.fixture(scope="module")
def patches(jx10):
    rng = np.random.default_rng(0)
    return [jx10.space.sample(rng) for _ in range(20)]


def test_a_patch_sounds_the_same_whatever_came_before(jx10, patches):
    forth = [jx10.render(*patch, 1.0) for patch in patches]
    back = [jx10.render(*patch, 1.0) for patch in reversed(patches)][::-1]
    fresh = open_synth(jx10.space)
    other = fresh.render(*patches[7], 1.0)
    fresh.host.close()
    assert np.abs(forth).max() > 0.01
    np.testing.assert_array_equal(forth, back)
    np.testing.assert_array_equal(forth[7], other)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.0, 2.345])
def test_a_render_has_exactly_its_length(jx10, patches, seconds):
    audio = jx10.render(*patches[0], seconds)
    assert audio.shape == (2, round(seconds * 44100))
    assert audio.dtype == np.float32


def test_the_note_starts_where_it_says(jx10):
    audio = jx10.render(jx10.space.default_patch, Note(60, 100, 0.5, 0.8), 1.0)
    assert np.abs(audio[:, : 22050 - 32]).max() < 1e-4  # to the block
    assert np.abs(audio[:, 22050:26460]).max() > 0.01


def test_every_parameter_that_is_asked_for_sounds(jx10):
    note = Note(60, 100, 0.0, 0.5)
    default = jx10.space.default_patch
    plain = jx10.render(default, note, 1.0)
    for change in ({"mix": 0.2}, {"cutoff": 0.3}, {"noise": 1.0}):
        assert np.abs(jx10.render(default | change, note, 1.0) - plain).max() > 1e-3, change


def test_a_value_outside_its_range_is_refused(jx10):
    with pytest.raises(SpaceError, match=r"'cutoff' is 0.95; allowed: 0.2 to 0.9"):
        jx10.render(jx10.space.default_patch | {"cutoff": 0.95}, Note(60, 100, 0, 0.5), 1.0)


def test_presets_come_back_and_sound_the_same_in_a_fresh_plugin(jx10, patches, tmp_path):
    fresh = open_synth(jx10.space)
    for i, (patch, note) in enumerate(patches[:5]):
        read = fresh.load_preset(jx10.save_preset(tmp_path / f"{i}.vstpreset", patch, "x"))
        assert {name: read[name] for name in ("glide",)} == {"glide": patch["glide"]}
        for name in ("mix", "cutoff", "noise"):
            assert read[name] == pytest.approx(patch[name], abs=1e-6)
        assert np.abs(fresh.render(read, note, 1.0) - jx10.render(patch, note, 1.0)).max() < 1e-3
    fresh.host.close()


def test_a_bank_is_one_preset_and_nothing_is_known_of_its_pitch(jx10, patches, tmp_path):
    patch = patches[0][0]
    bank = jx10.save_bank(tmp_path / "a.vstpreset", [("x", patch)])
    assert bank.read_bytes() == jx10.save_preset(tmp_path / "b.vstpreset", patch, "x").read_bytes()
    assert (jx10.bank_size, jx10.transpose(patch, 0)) == (1, None)


@pytest.mark.parametrize("content, message", [
    (b"", "it starts with nothing"),
    (b"RIFF and so on", "not a VST3 preset; it starts with 52 49 46 46"),
    (b"VST3", "truncated or damaged"),
    (os.urandom(5000).replace(b"VST3", b""), "not a VST3 preset"),
    (b"VST3" + os.urandom(5000), "truncated or damaged"),
])  # fmt: skip
def test_what_is_no_preset_is_refused(jx10, tmp_path, content, message):
    path = tmp_path / "x.vstpreset"
    path.write_bytes(content)
    with pytest.raises(PresetError, match=message):
        jx10.load_preset(path)


def test_a_truncated_preset_is_refused(jx10, tmp_path):
    path = jx10.save_preset(tmp_path / "x.vstpreset", jx10.space.default_patch, "x")
    whole = path.read_bytes()
    for size in (4, 40, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(PresetError, match="truncated or damaged"):
            jx10.load_preset(path)
    with pytest.raises(PresetError, match="No such file"):
        jx10.load_preset(tmp_path / "nowhere.vstpreset")


def test_a_crash_is_an_error_and_the_next_note_sounds(jx10, patches):
    before = jx10.render(*patches[0], 1.0)
    os.kill(jx10.host.pid, signal.SIGKILL)
    with pytest.raises(SynthError, match="mda JX10 crashed"):
        jx10.render(*patches[0], 1.0)
    np.testing.assert_array_equal(jx10.render(*patches[0], 1.0), before)


@pytest.mark.parametrize("space, message", [
    (small(plugin="mda Delay"), "is an effect, not an instrument"),
    (small(glide="Glissando"), "has no parameter Glissando"),
    (small(base="Vibrations: 0.5"), "has no parameter Vibrations"),
])  # fmt: skip
def test_what_the_plugin_is_not_or_has_not(jx10, space, message):
    with pytest.raises(SynthError, match=message):
        open_synth(space)


def test_a_plugin_that_is_nowhere():
    with pytest.raises(SynthNotFound, match=f"no VST3 plugin 'Moog' in .*{FOLDERS_VARIABLE}"):
        find_plugin("Moog")
    with pytest.raises(SynthNotFound, match=r"nowhere.vst3 is not there"):
        find_plugin("/nowhere.vst3")


def test_of_several_plugins_one_is_chosen(bundle):
    with pytest.raises(SynthNotFound, match=r"holds .*mda JX10.*; choose one"):
        find_plugin(bundle)
    assert find_plugin(f"{bundle}:mda DX10") == (bundle, "mda DX10")
    with pytest.raises(SynthNotFound, match="no VST3 plugin 'mda DX11'"):
        find_plugin(f"{bundle}:mda DX11")


def test_plugins_are_found_in_folders_with_spaces_and_letters_of_all_kinds(
    bundle, tmp_path, monkeypatch, patches
):
    folder = tmp_path / "Klänge und Töne" / "倉庫"
    folder.mkdir(parents=True)
    (folder / Path(bundle).name).symlink_to(bundle)
    monkeypatch.setenv(FOLDERS_VARIABLE, str(tmp_path / "Klänge und Töne"))
    assert folders()[0] == tmp_path / "Klänge und Töne"
    synth = open_synth(small())
    assert str(folder) in synth.host.arguments[0]
    assert np.abs(synth.render(*patches[0], 1.0)).max() > 0
    synth.host.close()


def test_a_broken_bundle_and_one_for_other_machines(tmp_path):
    broken = tmp_path / "broken.vst3"
    broken.write_bytes(b"this is no plugin")
    with pytest.raises(SynthError, match="holds no VST3 plugin that can be loaded"):
        find_plugin(str(broken))
    (tmp_path / "foreign.vst3/Contents/sparc-linux").mkdir(parents=True)
    with pytest.raises(SynthError, match="is built for sparc-linux; this machine needs"):
        find_plugin(str(tmp_path / "foreign.vst3"))


def test_preset_files_by_hand():
    data = preset_file("A" * 32, b"the chunk")
    assert data[:4] == b"VST3" and data[8:40] == b"A" * 32
    assert preset_chunk(data, "x") == b"the chunk"
    with pytest.raises(PresetError):  # a list that promises more than there is
        preset_chunk(data[:-16] + struct.pack("<QQ", 48, 1 << 40), "x")


def test_names_that_come_twice_are_numbered():
    assert index_by_key(["Mix", "Tune", "Mix", "Mix"]) == {"Mix": 0, "Tune": 1, "Mix#2": 2, "Mix#3": 3}


def test_a_survey_finds_what_is_heard(jx10):
    space, table, measured = survey("mda JX10", seconds=0.5)
    rows = table.set_index("key")
    assert len(table) == 31
    assert rows.loc["Factory Presets", "why_not"] == "sets other parameters"
    assert rows.loc["VCF Freq", "heard"] > 5
    assert rows.loc["Glide", "kind"] == "categorical" and "Mono-Glide" in rows.loc["Glide", "values"]
    assert {p.key for p in space.parameters} == set(rows.index[rows.why_not == ""])
    assert len(space.parameters) >= 20
    assert measured["floor"] < 0.1 and measured["silent"] < 0.5
    synth = open_synth(space)
    audio = synth.render(space.default_patch, Note(60, 100, 0.0, 0.25), 0.5)
    synth.host.close()
    assert np.abs(audio).max() > 0.01


def test_an_interrupted_survey_leaves_no_process_behind(jx10):
    before = set(psutil.Process().children())

    def interrupt(done: int, of: int):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        survey("mda JX10", seconds=0.2, progress=interrupt)
    assert caught and set(psutil.Process().children()) == before


def test_a_survey_of_what_will_not_be_found_again_stops_before_the_work(bundle, monkeypatch):
    monkeypatch.delenv(FOLDERS_VARIABLE, raising=False)
    monkeypatch.setattr("synthnb.synths.find.folders", list)
    with pytest.raises(SynthNotFound, match=f"no VST3 plugin 'mda JX10' in .*{FOLDERS_VARIABLE}"):
        survey(f"{bundle}:mda JX10")
