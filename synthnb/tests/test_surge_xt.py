"""Surge XT: its presets, its spaces, and, where it is installed, that patch, plugin and file agree."""

import json
import os
import re
import struct
from pathlib import Path

import h5py
import numpy as np
import papermill
import pytest
import torch
import yaml

from synthnb.data.generate import generate
from synthnb.evaluate.report import noise_floor
from synthnb.features import log_mel
from synthnb.metrics import all_metrics
from synthnb.models.checkpoint import load_model
from synthnb.search.matcher import Matcher
from synthnb.sound import loudness
from synthnb.space import Note, ParameterSpace
from synthnb.synths import PresetError, SynthNotFound, open_synth
from synthnb.synths.find import FOLDERS_VARIABLE
from synthnb.synths.surge.patch import CHUNK_HEADER, CLASS_ID, read_chunk
from synthnb.synths.surge.plugin import SurgeXT
from synthnb.synths.vst3 import preset_file

XML = b'<patch revision="24"><parameters><a_pitch type="2" value="1.0"/></parameters></patch>'
CHUNK = CHUNK_HEADER.pack(b"sub3", len(XML), *[0] * 6) + XML


def fxp(xml: bytes) -> bytes:
    chunk = CHUNK_HEADER.pack(b"sub3", len(xml), *[0] * 6) + xml
    return struct.pack(">4sI4sI4sII28sI", b"CcnK", 0, b"FPCh", 1, b"cjs3", 1, 1, b"name", len(chunk)) + chunk


FXP = fxp(XML)


def test_a_chunk_is_found_in_both_formats(tmp_path):
    for name, data in (("x.fxp", FXP), ("x.vstpreset", preset_file(CLASS_ID, CHUNK))):
        (tmp_path / name).write_bytes(data)
        assert read_chunk(tmp_path / name) == CHUNK


@pytest.mark.parametrize("data, message", [
    (b"", "it starts with nothing"),
    (b"RIFF", "neither .fxp nor .vstpreset; it starts with 52 49 46 46"),
    (os.urandom(3000).replace(b"VST3", b"").replace(b"CcnK", b""), "neither .fxp nor .vstpreset"),
    (b"CcnK" + os.urandom(3000), "a preset of another plugin"),
    (b"CcnK", "truncated"),
    (FXP[:30], "truncated; an .fxp has 60 bytes"),
    (FXP[:100], "truncated; 117 bytes of patch are announced, 40 are there"),
    (FXP[:-3], "truncated"),
    (FXP[:16] + b"Xfer" + FXP[20:], "a preset of another plugin, not of Surge"),
    (FXP.replace(b"sub3", b"sub9"), "holds no patch of Surge XT"),
    (FXP.replace(b"</patch>", b"</potch>"), "its patch is damaged"),
    (FXP.replace(b"parameters", b"paramsters"), "its patch is damaged"),
    (fxp(XML.replace(b'"1.0"', b'"nan"')), "its patch is damaged .*'nan'"),
    (fxp(XML.replace(b'"1.0"', b'"high"')), "its patch is damaged .*'high'"),
    (fxp(XML.replace(b"/></par", b"><modrouting depth='1'/></a_pitch></par")), "its patch is damaged"),
    (fxp(XML.replace(b"/></par", b"><modrouting source='1'/></a_pitch></par")), "its patch is damaged"),
    (fxp(XML.replace(b"</patch>", b"<customcontroller><entry i='x'/></customcontroller></patch>")), "is damaged"),
    (preset_file("A" * 32, CHUNK), "a preset of another plugin"),
    (preset_file(CLASS_ID, CHUNK)[:-5], "truncated or damaged"),
    (preset_file(CLASS_ID, b"JUCE"), "holds no patch of Surge XT"),
])  # fmt: skip
def test_what_is_no_preset_of_surge_is_refused(tmp_path, data, message):
    path = tmp_path / "x.fxp"
    path.write_bytes(data)
    with pytest.raises(PresetError, match=message):
        read_chunk(path)
    with pytest.raises(PresetError, match="No such file"):
        read_chunk(tmp_path / "nowhere.fxp")


def test_without_surge_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(FOLDERS_VARIABLE, raising=False)
    monkeypatch.setattr("synthnb.synths.find.folders", lambda: [tmp_path])
    with pytest.raises(SynthNotFound, match="Surge XT is not installed; run 'make surge'"):
        open_synth(ParameterSpace.load("surge_simple"))


# --- the spaces, as data ----------------------------------------------------------------------------------------------

#: name: parameters, width, those that are published: synth-permutations, ISMIR 2025, section 4.2.
PUBLISHED = {"surge_simple": (89, 92), "surge_full": (162, 300)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_spaces_have_their_published_sizes(name):
    space = ParameterSpace.load(name)
    assert (len(space.parameters), space.width) == PUBLISHED[name]
    assert (space["pitch"].low, space["pitch"].high, space.velocity, space.seconds) == (48, 72, 100, 4.0)
    keys = [p.key for p in space.parameters]
    assert len(set(keys)) == len(keys)
    rng = np.random.default_rng(0)
    for _ in range(20):
        patch, note = space.sample(rng)
        assert 0 <= note.start <= note.end <= 4
        again, same_note = space.decode(space.encode(patch, note))
        assert same_note.pitch == note.pitch
        assert all(again[p.name] == patch[p.name] for p in space.parameters if p.kind == "categorical")


def plugin_table() -> dict:
    """Every parameter of a real Surge XT, as a host sees it: measured, in a file that an environment variable names."""
    path = os.environ.get("SYNTHNB_SURGE_PARAMETERS")
    if not path:
        pytest.skip("SYNTHNB_SURGE_PARAMETERS names no table of Surge's parameters")
    return json.loads(Path(path).read_text())


#: What the names of oscillator and effect parameters become once their types are those of the published spaces.
OSCILLATOR = ["sawtooth", "pulse", "triangle", "width", "sync", "unison_detune", "unison_voices"]


@pytest.mark.parametrize("name", [*PUBLISHED, "surge_human"])
def test_names_ranges_and_texts_are_those_of_the_plugin(name):
    table = plugin_table()
    slots = ["shape", "width_1", "width_2", "sub_mix", "sync", "unison_detune", "unison_voices"]
    checked = 0
    for p in ParameterSpace.load(name).parameters:
        host = p.name
        for ours, theirs in zip(OSCILLATOR, slots):
            host = re.sub(rf"(a_osc_\d)_{ours}$", rf"\1_{theirs}", host)
        # No modulation; nothing whose names the table has of another effect, oscillator or filter type.
        if re.search(r"/|^fx|@1$|_subtype", p.key):
            continue
        row = table[host]
        if p.kind == "categorical":
            valid = row["valid_values"]
            known = [
                ("Off", "On")[v] if isinstance(v, bool) else v if isinstance(v, str) else f"{v:g}"
                for v in valid
            ]
            low = int(row["surge"]["min"])
            for choice, code in zip(p.choices, p.codes):
                assert known[code - low] == choice, p.name
        elif not re.search(
            r"a_osc_\d_(sawtooth|pulse|triangle|width|sync)$", p.name
        ):  # those depend on the type
            low, high = row["surge"]["min"], row["surge"]["max"]
            assert low - 1e-4 <= p.low < p.high <= high + 1e-4, p.name
        checked += 1
    assert checked > 80


@pytest.mark.parametrize("name, given, semitones, expected", [
    ("surge_human", {"a_pitch": 2.5}, 12, {"a_octave": "1"}),
    ("surge_human", {"a_pitch": 2.5}, 3, {"a_pitch": 5.5}),
    ("surge_human", {"a_pitch": 2.5}, 6, {"a_octave": "1", "a_pitch": -3.5}),
    ("surge_human", {"a_octave": "-3"}, 43, {"a_octave": "1", "a_pitch": -5.0}),
    ("surge_human", {"a_octave": "3", "a_pitch": 7.0}, 1, None),
    ("surge_full", {"a_osc_2_octave": "2"}, 13, {"a_osc_1_octave": "1", "a_osc_2_octave": "3", "a_osc_3_octave": "1",
                                                 "a_osc_1_pitch": 1.0, "a_osc_2_pitch": 1.0, "a_osc_3_pitch": 1.0}),
    ("surge_full", {"a_osc_2_octave": "3"}, 12, None),
    ("surge_simple", {}, -7, {f"a_osc_{i}_pitch": -7.0 for i in (1, 2, 3)}),
    ("surge_simple", {}, 12, None),
])  # fmt: skip
def test_what_moves_a_patch_by_semitones(monkeypatch, name, given, semitones, expected):
    monkeypatch.setattr(SurgeXT, "_find", lambda self: ("not started", None))
    synth = SurgeXT(ParameterSpace.load(name))
    patch = synth.space.default_patch | given
    moved = synth.transpose(patch, semitones)
    assert moved == (None if expected is None else patch | expected)
    assert synth.transpose(patch, 0) == patch


# --- a real Surge XT --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PUBLISHED)
def surge(request):
    try:
        synth = open_synth(ParameterSpace.load(request.param))
    except SynthNotFound as error:
        pytest.skip(str(error))
    yield synth
    synth.host.close()


def drawn(synth, count: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [synth.space.sample(rng) for _ in range(count)]


def test_every_parameter_that_is_asked_for_is_the_one_that_surge_holds(surge):
    for patch, note in drawn(surge, 20):
        assert surge.wrong(patch) == []
        surge.render(patch, note, 0.1)  # whatever sounded before


def test_each_parameter_reaches_its_own_place_in_surge(surge):
    """One parameter changed: of all that Surge holds, that one has changed and no other."""
    default = surge.space.default_patch
    before = surge.settings(surge.chunk(default))
    for p in surge.space.parameters[:: max(1, len(surge.space.parameters) // 40)]:
        other = next(v for v in (p.choices or (p.high, p.low)) if v != default[p.name])
        after = surge.settings(surge.chunk(default | {p.name: other}))
        assert [key for key in before if before[key] != after[key]] == [p.key], p.name


def test_the_base_is_the_published_one(surge):
    """Modern oscillators, LFO 6 on pitch, LFO 1 and 2 on the cutoffs, LFO 3 to 5 on the widths."""
    held = surge.settings(surge.chunk(surge.space.default_patch))
    assert [held[f"a_osc{i}_type"]["value"] for i in (1, 2, 3)] == ["8"] * 3
    routes = {key: setting["modrouting"] for key, setting in held.items() if setting["modrouting"]}
    assert routes == {
        "a_pitch": {22: 14.0},
        "a_filter1_cutoff": {17: 130.0}, "a_filter2_cutoff": {18: 130.0},
        "a_osc1_param3": {19: 1.0}, "a_osc2_param3": {20: 1.0}, "a_osc3_param3": {21: 1.0},
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".fxp", ".vstpreset"])
def test_presets_go_out_and_come_back(surge, tmp_path, suffix):
    fresh = open_synth(surge.space)
    for i, (patch, _) in enumerate(drawn(surge, 5)):
        path = surge.save_preset(tmp_path / f"{i}{suffix}", patch, f"Größe & <{i}>")
        read, missed = fresh.read_preset(path)
        assert missed == []
        for p in surge.space.parameters:
            if p.kind == "categorical":
                assert read[p.name] == patch[p.name], p.name
            else:
                assert read[p.name] == pytest.approx(patch[p.name], rel=1e-5, abs=1e-5), p.name
    fresh.host.close()


def test_what_a_preset_has_beyond_the_space_is_told(surge, tmp_path):
    space = ParameterSpace.parse(
        surge.space.text.replace(
            "a_polymode: 1",
            "a_polymode: 0\n  a_portamento: {value: 3.0, modrouting: {17: 2.0}}\n  b_pitch: 3.0",
        )
    )
    other = open_synth(space)
    path = other.save_preset(tmp_path / "x.fxp", space.default_patch, "x")  # its scene B isn't played
    with pytest.warns(UserWarning, match="cover a_polymode 0, a_portamento 3, a_portamento/17 2$"):
        surge.load_preset(path)
    other.host.close()


#: What makes Surge random, and how a space is rid of it (see the settings of `surge_human`).
QUIET = "base:\n  a_osc1_retrigger: 1\n  a_osc2_retrigger: 1\n  a_osc3_retrigger: 1\n  a_mute_noise: 1\n"


@pytest.fixture(scope="module")
def repeatable(surge):
    text = surge.space.text.replace("base:\n", QUIET, 1).replace(", Noise: 4, Sample & Hold: 5", "")
    text = re.sub(r"\n  a_(osc_drift|noise_mute|noise_volume): .*|\n  a_mute_noise: 0", "", text)
    synth = open_synth(ParameterSpace.parse(text))
    yield synth
    synth.host.close()


def test_without_randomness_a_patch_repeats_to_the_bit(repeatable):
    patches = drawn(repeatable, 12)
    forth = [repeatable.render(*patch, 4.0) for patch in patches]
    back = [repeatable.render(*patch, 4.0) for patch in reversed(patches)][::-1]
    repeatable.host.close()  # and in a fresh instance
    fresh = [repeatable.render(*patch, 4.0) for patch in patches]
    assert np.abs(forth).max() > 0.05
    np.testing.assert_array_equal(forth, back)
    np.testing.assert_array_equal(forth, fresh)


@pytest.mark.parametrize("suffix", [".fxp", ".vstpreset"])
def test_surge_shows_name_category_and_author(surge, tmp_path, suffix):
    path = surge.save_bank(tmp_path / f"x{suffix}", [("Größe", surge.space.default_patch)])
    state = surge.host.call("state", preset_file(CLASS_ID, read_chunk(path)))
    meta = re.search("<meta .*?>", state.decode("utf-8", "replace"))[0]
    assert all(f'{key}="{value}"' in meta for key, value in
               {"name": "Größe", "category": "synthnb", "author": "synthnb"}.items())  # fmt: skip


def test_a_transposed_patch_sounds_like_a_higher_key(repeatable, human):
    """Exactly, but for rounding and what FM and resonators make of that in a few patches (2.5 dB in one of 300)."""
    for synth in (repeatable, human):
        differences = []
        for semitones in (-5, 3):
            for patch, note in drawn(synth, 10):
                if higher := synth.transpose(patch, semitones):
                    expected = synth.render(patch, note._replace(pitch=note.pitch + semitones), 1.0)
                    audio = torch.from_numpy(np.stack([expected, synth.render(higher, note, 1.0)]))
                    differences.append(float(log_mel(audio).diff(dim=0).abs().mean()))
        assert len(differences) > 5 and np.median(differences) < 0.01
        assert np.mean(np.array(differences) < 0.5) > 0.9


def assert_swaps_do_not_change_the_sound(synth, patches):
    swapped = 0
    for patch, note in patches:
        for blocks in synth.space.interchangeable_in(patch):
            other = synth.space.swap(patch, *blocks[:2])
            assert other != patch
            sound = synth.render(patch, note, 4.0)
            np.testing.assert_allclose(synth.render(other, note, 4.0), sound, rtol=0, atol=1e-6)
            swapped += np.abs(sound).max() > 1e-3
    assert swapped >= 2


def test_what_is_called_interchangeable_is(repeatable):
    assert_swaps_do_not_change_the_sound(repeatable, drawn(repeatable, 12))


def test_a_note_sounds_alike_whenever_it_starts(repeatable):
    blocks = 1200
    for patch, note in drawn(repeatable, 6):
        late = note._replace(start=blocks * 32 / 44100, end=blocks * 32 / 44100 + 1.5)
        sound = repeatable.render(patch, note._replace(start=0.0, end=1.5), 4.0)
        shifted = repeatable.render(patch, late, 4.0)
        assert not shifted[:, : blocks * 32].any()
        np.testing.assert_array_equal(shifted[:, blocks * 32 :], sound[:, : -blocks * 32])


@pytest.fixture(scope="module")
def simple(surge):  # which skips where it is not installed
    synth = open_synth(ParameterSpace.load("surge_simple"))
    yield synth
    synth.host.close()


def test_what_is_known_to_be_quiet_is(simple):
    quiet = [clip for clip in drawn(simple, 300) if simple.ceiling(*clip) < -55]
    assert len(quiet) > 20
    assert max(loudness(simple.render(*clip, 4.0)) for clip in quiet) < -60


def test_of_other_spaces_nothing_is_known(repeatable, human):
    for synth in (repeatable, human):
        assert all(synth.ceiling(*clip) == np.inf for clip in drawn(synth, 50))


def test_a_dataset_is_the_same_from_one_worker_and_from_two(repeatable, tmp_path):
    for workers in (1, 2):
        generate(
            tmp_path / str(workers), repeatable.space, 8, 2, 2, shard_size=4, workers=workers, progress=False
        )
    for name in ("param_array", "mel_spec", "audio"):
        one, two = ([h5py.File(p)[name][:] for p in sorted(tmp_path.glob(f"{w}/shard-*.h5"))] for w in (1, 2))
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_noise_floor_of_a_published_space_is_not_zero(surge):
    floor = noise_floor(surge.space, 5)
    assert len(floor) == 5
    assert 0 < floor["MSS"].mean() < 10 and floor["RMS"].mean() <= 1


# --- the human space --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def human():
    try:
        synth = open_synth(ParameterSpace.load("surge_human"))
    except SynthNotFound as error:
        pytest.skip(str(error))
    yield synth
    synth.host.close()


def test_the_human_space_says_what_surge_holds_and_repeats(human):
    patches = drawn(human, 15)
    assert [human.wrong(patch) for patch, _ in patches] == [[]] * 15
    forth = [human.render(*patch, 4.0) for patch in patches]
    back = [human.render(*patch, 4.0) for patch in reversed(patches)][::-1]
    fresh = []
    for patch in patches:
        human.host.close()
        fresh.append(human.render(*patch, 4.0))
    assert np.abs(forth).max() > 0.05
    for a, b, c in zip(forth, back, fresh, strict=True):  # the last bits depend on what was there before
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, np.abs(a).max()))
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-6 * max(1.0, np.abs(a).max()))


def test_what_is_called_interchangeable_in_the_human_space_is(human):
    assert_swaps_do_not_change_the_sound(human, drawn(human, 12))


def test_a_modulation_is_a_parameter_like_others(human, tmp_path):
    patch = human.space.default_patch | {"lfo_1_to_pitch": 7.0, "a_lfo_1_amplitude": 1.0}
    held = human.settings(human.chunk(patch))
    assert held["a_pitch"]["modrouting"] == {17: 7.0}
    read, missed = human.read_preset(human.save_preset(tmp_path / "x.fxp", patch, "x"))
    assert read["lfo_1_to_pitch"] == 7.0 and missed == []
    note = Note(60, 100, 0.0, 0.9)
    assert (
        np.abs(human.render(patch, note, 1.0) - human.render(human.space.default_patch, note, 1.0)).max()
        > 0.01
    )


def test_a_preset_says_all_that_is_heard(human):
    """In a Surge that was just started, and in one that has played other things."""
    human.host.close()
    patch = human.space.default_patch
    heard = human.settings(human.chunk(patch))
    first = {key: setting for key, setting in heard.items() if setting.get("deactivated") != "1"}
    human.render(*drawn(human, 1)[0], 1.0)
    then = human.settings(human.chunk(patch))
    assert {key: then[key] for key in first} == first


def test_an_oscillator_has_the_parameters_of_its_type(human, tmp_path):
    patch = human.space.default_patch | {"a_osc_1_type": "Sine", "a_osc_1_sine_feedback": 0.5}
    held = human.settings(human.chunk(patch | {"a_osc_1_shape": 0.9}))
    assert (held["a_osc1_type"]["value"], float(held["a_osc1_param1"]["value"])) == ("1", 0.5)
    assert float(held["a_osc1_param0"]["value"]) == 0  # a sine's shape, not what the Classic one would have
    read, missed = human.read_preset(human.save_preset(tmp_path / "x.fxp", patch, "x"))
    assert (read["a_osc_1_type"], read["a_osc_1_sine_feedback"], missed) == ("Sine", 0.5, [])


def test_a_preset_with_another_oscillator_is_read_as_far_as_it_goes(human, tmp_path):
    text = re.sub(r"\n  a_osc_1_(type|sine)\w*: .*", "", human.space.text)
    other = open_synth(ParameterSpace.parse(text.replace("base:\n", "base:\n  a_osc1_type: 3\n", 1)))
    patch = {name: other.space[name].default for name in other.space.default_patch} | {
        "a_filter_1_cutoff": 20.0
    }
    read, missed = human.read_preset(other.save_preset(tmp_path / "x.fxp", patch, "x"))
    assert read["a_osc_1_shape"] == human.space["a_osc_1_shape"].default
    assert (read["a_osc_1_type"], read["a_filter_1_cutoff"]) == ("Classic", 20.0)
    assert missed == ["a_osc_1_type 3"]
    other.host.close()


def test_what_velocity_and_macros_add_is_part_of_the_value(human, tmp_path):
    space = human.space
    patch = space.default_patch | {"a_filter_1_type": "LP 12 dB", "a_filter_1_cutoff": 10.0}
    text = space.text.replace(
        "base:\n", "base:\n  a_filter1_cutoff: {value: 0.0, modrouting: {1: 12.7, 7: 50.0}}\n", 1
    )
    moved = open_synth(ParameterSpace.parse(text))
    read, missed = human.read_preset(moved.save_preset(tmp_path / "x.fxp", patch, "x"))
    assert read["a_filter_1_cutoff"] == pytest.approx(
        10.0 + 12.7 * space.velocity / 127
    )  # the macros are at 0
    assert missed == []
    note = Note(60, space.velocity, 0.0, 0.9)
    np.testing.assert_allclose(
        human.render(read, note, 1.0), moved.render(patch, note, 1.0), rtol=0, atol=1e-4
    )
    moved.host.close()


def test_the_checkpoint_that_comes_along_finds_a_preset(human, tmp_path):
    model = load_model("surge_human")
    assert model.space.text == human.space.text
    patch = human.space.default_patch | {"a_filter_1_type": "LP 12 dB", "a_filter_1_cutoff": -10.0}
    target = human.render(patch, Note(55, 100, 0.0, 2.0), 4.0)
    match = Matcher(model, workers=1).match(target, seconds=5.0)
    default = human.render(human.space.default_patch, Note(60, 100, 0.0, 3.0), 4.0)
    assert match.metrics()["MSS"] < all_metrics(target, default)["MSS"]
    preset = match.save(tmp_path, "found")["preset"]
    assert preset.suffix == ".fxp" and human.read_preset(preset)[1] == []


# --- the notebooks ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebooks_run_with_surge(surge, tmp_path):
    """The smoke parameters, in the order a person would use them, with all that they write in another place."""
    if surge.space.name != "surge_simple":
        pytest.skip("the smoke parameters are for surge_simple")
    root = Path(__file__).parents[2]
    for notebook, name in {
        "01_generate_data": "generate/surge_simple_smoke",
        "02_train": "train/surge_smoke",
        "03_evaluate": "evaluate/surge_smoke",
        "04_match_a_sound": "match/surge_smoke",
        "00_tour": "tour/surge_smoke",
    }.items():
        text = (root / "params" / f"{name}.yaml").read_text().replace(" ../", f" {tmp_path}/")
        papermill.execute_notebook(
            root / "notebooks" / f"{notebook}.ipynb",
            tmp_path / f"{notebook}.ipynb",
            yaml.safe_load(text),
            cwd=root / "notebooks",
            progress_bar=False,
        )
    preset = next((tmp_path / "outputs/match_surge_smoke").glob("*.fxp"))
    assert surge.read_preset(preset)[1] == []
