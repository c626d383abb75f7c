"""The DX7: files hold a patch exactly, other software reads them the same, and rendering repeats to the bit."""

import time

import dexed
import numpy as np
import pytest

from synthnb.evaluate.report import noise_floor
from synthnb.sound import SAMPLE_RATE
from synthnb.space import Note, ParameterSpace
from synthnb.synths import PresetError, SynthNotFound, open_synth
from synthnb.synths.dexed import LAYOUT, Dexed, voice_bytes, voice_names

NOTE = Note(60, 100, 0.0, 0.3)


@pytest.fixture(scope="module")
def many(space, patches):
    """50 patches: the default one, some of people's kind, some from the corners of every range."""
    uniform, rng = ParameterSpace.load("dexed_uniform"), np.random.default_rng(6)
    corners = [
        {p.name: p.values[0] for p in space.parameters},
        {p.name: p.values[-1] for p in space.parameters},
    ]
    likely = [patch for patch, _ in patches[:27]]
    return [space.default_patch, *corners, *likely, *(uniform.sample(rng)[0] for _ in range(20))]


@pytest.fixture
def single(tmp_path, synth, many):
    return synth.save_preset(tmp_path / "voice.syx", many[5], "BRASS   1")


@pytest.fixture
def bank(tmp_path, synth, many):
    return synth.save_bank(
        tmp_path / "bank.syx", [(f"VOICE {i}", patch) for i, patch in enumerate(many[:32])]
    )


def change(path, at, value, fix_checksum=False):
    data = bytearray(path.read_bytes())
    data[at] = value
    if fix_checksum:
        data[-2] = -sum(data[6:-2]) & 0x7F
    path.write_bytes(data)
    return path


def test_a_single_voice_round_trips_with_its_sound(tmp_path, synth, space, many):
    for patch in many:
        loaded = synth.load_preset(synth.save_preset(tmp_path / "one.syx", patch, "ONE"))
        assert loaded == patch
        space.check(loaded)
        np.testing.assert_array_equal(synth.render(loaded, NOTE, 0.4), synth.render(patch, NOTE, 0.4))


def test_a_bank_round_trips_with_its_sounds(tmp_path, synth, space, many):
    for first in (0, 25):
        given = [(f"NO {i}", patch) for i, patch in enumerate(many[first : first + 25])]
        voices = synth.load_bank(synth.save_bank(tmp_path / "bank.syx", given))
        assert voices[:25] == given
        assert voices[25:] == [("INIT VOICE", space.default_patch)] * 7
        for (_, loaded), (_, patch) in zip(voices, given):
            np.testing.assert_array_equal(synth.render(loaded, NOTE, 0.2), synth.render(patch, NOTE, 0.2))


def dexed_finds(data: bytes) -> bool:
    """Whether Dexed's browser lists a `.syx` and its reader takes a cartridge from it without a question.

    It wants 4,096 bytes, begins at F0 and goes from one F7 to the next until a message has 4,104 bytes; that one's
    checksum must be right.
    """
    if len(data) < 4096 or data[0] != 0xF0:
        return False
    for message in data[:65535].split(b"\xf7"):
        if len(message) == 4103:
            return sum(message[6:4103]) % 128 == 0
    return False


def test_dexed_lists_and_loads_a_bank_of_any_size(tmp_path, synth, many, single):
    for count in (1, 8, 32):
        path = synth.save_bank(tmp_path / "x.syx", [("BRASS", patch) for patch in many[:count]])
        assert path.stat().st_size == 4104 and dexed_finds(path.read_bytes())
    assert not dexed_finds(single.read_bytes())
    assert not dexed_finds(change(path, 100, path.read_bytes()[100] ^ 1).read_bytes())


def test_a_single_voice_is_a_dx7_voice_dump(single, many):
    data = single.read_bytes()
    assert len(data) == 163
    assert data[:6] == bytes.fromhex("f0 43 00 00 01 1b")  # Yamaha, channel 1, format 0, 155 bytes
    assert (sum(data[6:161]) + data[161]) % 128 == 0
    assert data[162] == 0xF7
    assert max(data[1:162]) < 0x80
    assert data[6:161] == voice_bytes(many[5], "BRASS   1")
    assert data[6 + 145 : 161] == b"BRASS   1 "
    for at, (name, top) in enumerate(LAYOUT):
        value = many[5][name]
        assert data[6 + at] == (top.index(value) if isinstance(top, tuple) else value)


def test_a_bank_is_a_dx7_bulk_dump(bank):
    data = bank.read_bytes()
    assert len(data) == 4104
    assert data[:6] == bytes.fromhex("f0 43 00 09 20 00")  # Yamaha, channel 1, format 9, 4096 bytes
    assert (sum(data[6:4102]) + data[4102]) % 128 == 0
    assert data[4103] == 0xF7
    assert max(data[1:4103]) < 0x80


def test_another_reader_reads_the_same(single, bank, synth, many):
    other = dexed.Patch.from_sysex(single.read_bytes()[6:161])
    assert other.to_sysex()[:145] == voice_bytes(many[5])[:145]
    assert other.name == "BRASS   1 "
    engine = dexed.DexedSynth(SAMPLE_RATE)
    for voice, patch in zip(dexed.Patch.load_bank(str(bank)), many):
        assert voice.to_sysex()[:145] == voice_bytes(patch)[:145]
        assert voice.op[0].output_level == patch["op1_output_level"]
        assert voice.op[5].frequency_coarse == int(patch["op6_coarse"])
        assert voice.algorithm + 1 == int(patch["algorithm"])
        engine.load_patch(voice)
        length = round(0.2 * SAMPLE_RATE)
        theirs = engine.render(60, 100, 0.3, 0.25)[:length]
        np.testing.assert_array_equal(synth.render(patch, NOTE, 0.2)[0], theirs)


def test_a_file_by_another_writer_is_read_the_same(tmp_path, synth, many):
    voices = [dexed.Patch.from_sysex(voice_bytes(patch, f"N{i}")) for i, patch in enumerate(many[:32])]
    dexed.Patch.save_to_bank(str(tmp_path / "theirs.syx"), voices)
    assert synth.load_bank(tmp_path / "theirs.syx") == [(f"N{i}", patch) for i, patch in enumerate(many[:32])]


@pytest.mark.parametrize("name, kept", [
    ("E.PIANO 1", "E.PIANO 1"), ("much too long a name", "much too l"), ("Flöte", "Flote"),
    ("", "synthnb"), ("倉庫", "synthnb"), ("a\nb\0\x7f", "ab"),
])  # fmt: skip
def test_the_name_survives(tmp_path, synth, many, name, kept):
    path = synth.save_preset(tmp_path / "named.syx", many[0], name)
    assert synth.load_bank(path) == [(kept, many[0])]
    path = synth.save_bank(tmp_path / "named.syx", [(name, many[0])])
    assert synth.load_bank(path)[0] == (kept, many[0])


def test_names_are_told_apart():
    given = ["a long name of one", "a long name of two", "BRASS", "BRASS", "BRASS 2", *["x" * 12] * 12]
    names = voice_names(given)
    assert names[:5] == ["a long nam", "a long n 2", "BRASS", "BRASS 2", "BRASS 2 2"]
    assert len(set(names)) == len(given) and max(map(len, names)) == 10 and names[-1] == "xxxxxxx 12"


@pytest.mark.parametrize("semitones", [-24, -12, -7, -1, 1, 5, 12, 24])
def test_a_transposed_patch_sounds_like_a_higher_key(synth, patches, semitones):
    """To the bit, keyboard scaling and operators of fixed frequency included."""
    moved = [(synth.transpose(patch, semitones), patch) for patch, _ in patches[:20]]
    assert any(higher for higher, _ in moved)
    for higher, patch in moved:
        if not 0 <= patch["transpose"] + semitones <= 48:
            assert higher is None
            continue
        expected = synth.render(patch, NOTE._replace(pitch=60 + semitones), 0.2)
        np.testing.assert_array_equal(synth.render(higher, NOTE, 0.2), expected)
        assert synth.transpose(higher, -semitones) == patch


def test_a_render_is_stereo_shaped_and_as_long_as_asked(synth, many):
    for seconds in (0.05, 0.4, 1.0):
        audio = synth.render(many[0], NOTE, seconds)
        assert audio.shape == (2, round(seconds * SAMPLE_RATE)) and audio.dtype == np.float32
        np.testing.assert_array_equal(audio[0], audio[1])
        assert np.isfinite(audio).all() and np.abs(audio).max() > 0.01


@pytest.mark.parametrize("start", [1 / SAMPLE_RATE, 0.0123, 0.1])
def test_a_later_start_is_the_same_sound_after_silence(synth, patches, start):
    first = round(start * SAMPLE_RATE)
    for patch, note in patches[:5]:
        now, later = (note._replace(start=s, end=0.3 + s) for s in (0.0, first / SAMPLE_RATE))
        audio = synth.render(patch, later, 0.5)
        assert not audio[:, :first].any()
        np.testing.assert_array_equal(audio[:, first:], synth.render(patch, now, 0.5)[:, :-first])


def test_the_note_ends_when_it_should(synth, many):
    short, long = (synth.render(many[0], Note(60, 100, 0.0, end), 0.6)[0] for end in (0.2, 0.5))
    at = round(0.2 * SAMPLE_RATE)
    np.testing.assert_array_equal(short[: at - 64], long[: at - 64])  # the engine works in blocks of 64
    assert np.abs(short[at + 4410 :]).max() < 0.01 * np.abs(long[at + 4410 : round(0.45 * SAMPLE_RATE)]).max()


def test_rendering_is_independent_of_order_and_instance(synth, patches):
    jobs = patches[:12]
    forward = [synth.render(*job, 0.4) for job in jobs]
    backward = [synth.render(*job, 0.4) for job in reversed(jobs)][::-1]
    fresh = [Dexed().render(*job, 0.4) for job in jobs]
    for once, again, anew in zip(forward, backward, fresh):
        np.testing.assert_array_equal(once, again)
        np.testing.assert_array_equal(once, anew)


@pytest.mark.parametrize(
    "parameter", ["op1_output_level", "op6_rate4", "lfo_speed", "pitch_level2", "transpose"]
)
def test_bytes_out_of_range_are_brought_into_it(single, synth, space, parameter):
    at = [name for name, _ in LAYOUT].index(parameter)
    patch = synth.load_preset(change(single, 6 + at, 127, fix_checksum=True))
    space.check(patch)
    assert patch[parameter] == space[parameter].high


def test_a_bank_full_of_noise_gives_usable_patches(bank, synth, space):
    noise = np.random.default_rng(7).integers(0, 128, 4096, dtype=np.uint8).tobytes()
    data = bank.read_bytes()
    bank.write_bytes(data[:6] + noise + bytes([-sum(noise) & 0x7F, 0xF7]))
    for _, patch in synth.load_bank(bank):
        space.check(patch)
        assert np.isfinite(synth.render(patch, NOTE, 0.1)).all()


@pytest.mark.parametrize("kind, size", [("single", 163), ("bank", 4104)])
def test_a_damaged_file_is_refused(request, synth, kind, size):
    path = request.getfixturevalue(kind)
    data = path.read_bytes()
    for length in (size - 1, size // 2, 6):
        path.write_bytes(data[:length])
        with pytest.raises(
            PresetError, match=f"{path.name}: dump 1 is truncated; one of its kind has {size}"
        ):
            synth.load_preset(path)
    path.write_bytes(data)
    change(path, size // 2, data[size // 2] ^ 1)
    with pytest.raises(PresetError, match=f"{path.name}: the checksum of dump 1 is wrong"):
        synth.load_preset(path)


SUPPLEMENT = bytes.fromhex("f043000608 60") + bytes(1120) + b"\x00\xf7"  # of a DX7II
PERFORMANCE = bytes.fromhex("f043007e0168") + b"LM  8952PM" + bytes(222) + b"\x00\xf7"  # of a TX802


def test_every_dump_of_a_file_is_read(single, bank, synth, many):
    one, whole = single.read_bytes(), bank.read_bytes()
    voice, voices = synth.load_bank(single), synth.load_bank(bank)
    for data, expected in [
        (whole + whole, voices * 2),
        (one * 32, voice * 32),
        (one + whole + one, voice + voices + voice),
        (SUPPLEMENT + whole, voices),
        (PERFORMANCE + SUPPLEMENT + whole + PERFORMANCE, voices),
        (bytes(2) + whole, voices),
        (b"\xf0\x43" + one + b"\r\n" + bytes(8), voice),
    ]:
        bank.write_bytes(data)
        assert synth.load_bank(bank) == expected


def test_a_damaged_dump_among_good_ones_is_left_out_and_named(single, bank, synth):
    one, whole = single.read_bytes(), bank.read_bytes()
    wrong = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    for data, problem in [
        (one + wrong + one, "the checksum of dump 2 is wrong"),
        (one + one + whole[:-9], "dump 3 is truncated"),
    ]:
        bank.write_bytes(data)
        with pytest.warns(UserWarning, match=f"bank.syx: {problem}.*left out"):
            assert len(synth.load_bank(bank)) == 2


@pytest.mark.parametrize(
    "data, start", [(b"", "nothing"), (b"RIFF\x00\x00WAVE", "52 49 46 46"), (b"\xf0\x41\x10", "f0 41 10")]
)
def test_a_foreign_file_is_refused(tmp_path, synth, data, start):
    path = tmp_path / "foreign.syx"
    path.write_bytes(data)
    with pytest.raises(PresetError, match=f"foreign.syx: not a DX7 voice or bank .*{start}"):
        synth.load_preset(path)


def test_a_file_that_is_not_there_is_refused(tmp_path, synth):
    with pytest.raises(PresetError, match=r"gone\.syx"):
        synth.load_preset(tmp_path / "gone.syx")


def test_a_dump_on_another_midi_channel_is_read(single, bank, synth, many):
    assert synth.load_preset(change(single, 2, 0x03)) == many[5]
    assert synth.load_preset(change(bank, 2, 0x0F)) == many[0]


@pytest.mark.parametrize(
    "parameter, value, message",
    [
        ("feedback", 8, "'feedback' is 8; a DX7 takes whole numbers from 0 to 7"),
        ("feedback", -1, "'feedback' is -1"),
        ("feedback", 2.5, "'feedback' is 2.5"),
        ("feedback", None, "'feedback' does not fit a DX7 voice"),
        ("feedback", float("inf"), "'feedback' does not fit a DX7 voice"),
        ("feedback", float("nan"), "'feedback' does not fit a DX7 voice"),
        ("algorithm", "33", "'algorithm' does not fit a DX7 voice"),
        ("lfo_wave", "cosine", "'lfo_wave' does not fit a DX7 voice"),
    ],
)
def test_an_impossible_value_is_refused(tmp_path, synth, space, parameter, value, message):
    patch = space.default_patch | {parameter: value}
    for attempt in (
        lambda: synth.save_preset(tmp_path / "x.syx", patch, "X"),
        lambda: synth.save_bank(tmp_path / "x.syx", [("X", patch)]),
        lambda: synth.render(patch, NOTE, 0.1),
    ):
        with pytest.raises(PresetError, match=message):
            attempt()
    assert not (tmp_path / "x.syx").exists()


def test_a_missing_value_is_refused(tmp_path, synth, space):
    patch = space.default_patch
    del patch["op3_fine"]
    with pytest.raises(PresetError, match="'op3_fine' does not fit a DX7 voice"):
        synth.save_preset(tmp_path / "x.syx", patch, "X")


@pytest.mark.parametrize("count", [0, 33])
def test_a_bank_takes_1_to_32_voices(tmp_path, synth, space, count):
    with pytest.raises(PresetError, match=f"1 to 32 voices; got {count}"):
        synth.save_bank(tmp_path / "x.syx", [("X", space.default_patch)] * count)


def test_an_unknown_synth_is_refused(space):
    with pytest.raises(SynthNotFound, match="no synth 'moog'; known: dexed, surge_xt, vst3"):
        open_synth(ParameterSpace.parse(space.text.replace("synth: dexed", "synth: moog")))


def test_the_engine_alone_takes_less_than_the_whole_render(synth, patches):
    patch, note = patches[0]
    start = time.perf_counter()
    for _ in range(5):
        synth.render(patch, note, 4.0)
    whole = (time.perf_counter() - start) / 5
    assert 0 < min(synth.engine_seconds(patch, note, 4.0) for _ in range(5)) < 1.5 * whole


def test_the_noise_floor_of_a_synth_that_repeats_is_zero_and_a_silent_space_ends(monkeypatch, short_space):
    floor = noise_floor(short_space, 3)
    assert len(floor) == 3 and floor["sample"].max() == 0 and floor["MSS"].max() == 0
    monkeypatch.setattr("synthnb.evaluate.report.LOUDNESS_FLOOR", 200.0)
    assert len(noise_floor(short_space, 1)) == 0
