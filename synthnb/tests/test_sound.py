"""What a usable sound is: every format reads, what is unusable is refused by name, onsets and levels are right."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from synthnb.containers import _ogg_checksum
from synthnb.sound import (
    SAMPLE_RATE,
    UnusableSound,
    _k_weighting,
    check_sound,
    decode_sound,
    find_onset,
    is_as_loud_as,
    loudness,
    prepare,
    read_sound,
    write_sound,
)

SUBTYPES = {  # format: the ways to store samples, with the largest error that each may make
    "wav": {"PCM_U8": 0.03, "PCM_16": 4e-5, "PCM_24": 2e-6, "PCM_32": 2e-6, "FLOAT": 2e-6, "DOUBLE": 2e-6},
    "aiff": {"PCM_S8": 0.03, "PCM_16": 4e-5, "PCM_24": 2e-6, "FLOAT": 2e-6},
    "flac": {"PCM_16": 4e-5, "PCM_24": 2e-6},
    "ogg": {"VORBIS": 0.05, "OPUS": 0.1},
    "mp3": {"MPEG_LAYER_III": 0.05},
}


def sine(frequency=440.0, seconds=0.5, rate=SAMPLE_RATE, channels=1, level=0.5):
    """Channel k plays at (k + 1) times the frequency, so that a swap would show."""
    time = np.arange(round(seconds * rate)) / rate
    harmonics = np.arange(1, channels + 1)[:, None]
    return level * np.sin(2 * np.pi * frequency * harmonics * time)


def pluck(seconds=1.0, frequency=220.0, decay=0.3):
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * frequency * time) * np.exp(-time / decay))[None]


def after(silence, audio):
    return np.pad(audio, ((0, 0), (round(silence * SAMPLE_RATE), 0)))


def noise(like, level, seed=0):
    return level * np.random.default_rng(seed).standard_normal(like.shape)


def encode(audio, rate=SAMPLE_RATE, kind="wav", subtype=None):
    file = io.BytesIO()
    subtype = subtype or ("FLOAT" if kind == "wav" else None)
    soundfile.write(file, audio.T, rate, format=kind.upper(), subtype=subtype)
    return file.getvalue()


# Reading


RATES = [8_000, 22_050, 44_100, 48_000, 96_000]
NO_RATES = {"MPEG_LAYER_III": [96_000], "OPUS": [22_050, 44_100, 96_000]}  # that the format does not have
KINDS = [(kind, subtype) for kind in SUBTYPES for subtype in SUBTYPES[kind]]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [(*k, rate) for k in KINDS for rate in RATES if rate not in NO_RATES.get(k[1], [])],
)
def test_reads_every_format_rate_and_channel_count(tmp_path, kind, subtype, rate, channels):
    path = tmp_path / f"sound.{kind}"
    path.write_bytes(encode(sine(440, 0.5, rate, channels), rate, kind, subtype))

    audio = read_sound(path)

    assert audio.dtype == np.float32 and audio.shape == (channels, pytest.approx(0.5 * SAMPLE_RATE, abs=2))
    assert audio.flags.c_contiguous
    middle = slice(SAMPLE_RATE // 10, -SAMPLE_RATE // 10)  # lossy formats and filters ring at the ends
    expected = sine(440, 0.6, SAMPLE_RATE, channels)[:, : audio.shape[1]]
    assert np.abs(audio - expected)[:, middle].max() < SUBTYPES[kind][subtype]


def test_44100_hz_is_left_bit_for_bit():
    original = noise(np.empty((2, 5000)), 0.1).astype(np.float32)
    np.testing.assert_array_equal(decode_sound(encode(original), "x.wav"), original)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "aiff"])
def test_more_than_two_channels_become_their_mean(kind):
    audio = decode_sound(encode(sine(channels=4), kind=kind), "surround")
    assert audio.shape == (1, SAMPLE_RATE // 2)
    middle = slice(4000, -4000)
    np.testing.assert_allclose(audio[0, middle], sine(channels=4).mean(axis=0)[middle], atol=0.03)


def test_bytes_and_file_agree(tmp_path):
    data = encode(sine(), 48_000, "flac")
    (tmp_path / "a.flac").write_bytes(data)
    np.testing.assert_array_equal(read_sound(tmp_path / "a.flac"), decode_sound(memoryview(data), "a.flac"))
    np.testing.assert_array_equal(read_sound(str(tmp_path / "a.flac")), decode_sound(data, "a.flac"))


def test_the_extension_does_not_matter(tmp_path):
    (tmp_path / "sound.wav").write_bytes(encode(sine(), kind="flac"))
    assert read_sound(tmp_path / "sound.wav").shape == (1, SAMPLE_RATE // 2)


@pytest.mark.parametrize(
    ("rate", "frequency"), [(96_000, 23_000), (96_000, 30_000), (96_000, 45_000), (48_000, 23_500)]
)
def test_resampling_does_not_alias(rate, frequency):
    loud = sine(frequency, 1.0, rate) + sine(
        100, 1.0, rate, level=0.01
    )  # the second keeps it from being silent
    audio = decode_sound(encode(loud, rate), "x")[0, 8820:-8820]
    alias = audio - sine(100, 1.0, level=0.01)[0, 8820:-8820]
    assert 20 * np.log10(alias.std() / (0.5 / np.sqrt(2))) < -120


@pytest.mark.parametrize(
    ("rate", "frequency"), [(96_000, 50), (96_000, 20_000), (48_000, 20_000), (8_000, 3_500)]
)
def test_resampling_is_flat_and_in_phase(rate, frequency):
    audio = decode_sound(encode(sine(frequency, 1.0, rate), rate), "x")[0, 8820:-8820]
    assert np.abs(audio - sine(frequency, 1.0)[0, 8820:-8820]).max() < 0.5 * 5e-4  # 0.004 dB


def test_reads_at_most_a_minute(tmp_path):
    path = tmp_path / "long.wav"
    path.write_bytes(encode(np.tile(sine(440, 1.0, 8_000), 70), 8_000))
    with path.open(
        "r+b"
    ) as file:  # a sparse file whose header says 1.1 GB: reading it all would take many seconds
        file.seek(0)
        header = bytearray(file.read(200))
        struct.pack_into("<I", header, header.index(b"data") + 4, 1_100_000_000)
        file.seek(0)
        file.write(header)
        file.truncate(1_100_000_200)
    assert read_sound(path).shape == (1, 60 * SAMPLE_RATE)


def test_a_note_after_the_first_minute_is_said_to_be_out_of_reach():
    late = np.concatenate([np.zeros((1, 61 * 8_000)), sine(440, 1.0, 8_000)], axis=1)
    with pytest.raises(UnusableSound, match=r"late.wav \(its first 60 s\): is silent"):
        decode_sound(encode(late, 8_000), "late.wav")


# Refusing


def test_refuses_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UnusableSound, match=r"nothing.wav: No such file or directory; give the path"):
        read_sound(tmp_path / "nothing.wav")
    with pytest.raises(UnusableSound, match=r"give the path of a sound file"):
        read_sound(tmp_path)


def test_refuses_an_empty_file(tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(UnusableSound, match=r"empty.wav: is an empty file"):
        read_sound(tmp_path / "empty.wav")


@pytest.mark.parametrize(
    "data",
    [
        b"not audio at all\n" * 500,
        b"\x89PNG\r\n\x1a\n" + bytes(5000),
        b"\0\0\0\x20ftypM4A " + bytes(range(256)) * 40,  # AAC, which libsndfile does not read
        bytes(5000),
        np.random.default_rng(0).bytes(20_000),
        b"x",
    ],
)
@pytest.mark.parametrize("name", ["thing.wav", "thing.mp3", "thing.raw"])
def test_refuses_what_is_not_audio(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnusableSound, match=rf"{name}: is not a sound file .* convert it to wav"):
        read_sound(tmp_path / name)


@pytest.mark.parametrize("kept", [0.97, 0.5, 0.1, 0.01])
@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_refuses_truncated_files(kind, subtype, kept):
    audio = sine(seconds=2.0, channels=2)
    rate = 48_000 if subtype == "OPUS" else SAMPLE_RATE
    data = encode(audio + noise(audio, 0.02), rate, kind, subtype)
    assert decode_sound(data, "whole").shape[0] == 2
    with pytest.raises(UnusableSound, match=rf"cut.{kind}: is truncated"):
        decode_sound(data[: int(kept * len(data))], f"cut.{kind}")


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_refuses_damaged_headers(kind):
    data = bytearray(encode(sine(), kind=kind))
    data[4:] = np.random.default_rng(0).bytes(len(data) - 4)
    with pytest.raises(UnusableSound, match=r"is truncated or damaged; copy it again"):
        decode_sound(bytes(data), f"x.{kind}")


@pytest.mark.parametrize("tag", [b"", b"ID3\x03\0\0\0\0\x0e\x10" + bytes(14 * 128 + 16)])
def test_mp3_with_a_length_header(tag):
    data = tag + encode(sine(seconds=2.0) + noise(np.empty((1, 2 * SAMPLE_RATE)), 0.02), kind="mp3")
    assert decode_sound(data, "tagged.mp3").shape == (1, 2 * SAMPLE_RATE)
    assert decode_sound(data + b"TAG" + bytes(125), "tagged.mp3").shape == (1, 2 * SAMPLE_RATE)
    with pytest.raises(UnusableSound, match="is truncated"):
        decode_sound(data[: len(data) // 2], "tagged.mp3")


def test_mp3_without_a_length_header():
    def headless(**settings):
        file = io.BytesIO()
        soundfile.write(file, pluck(5.0)[0], SAMPLE_RATE, format="MP3", **settings)
        first_frame = (
            144 * [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][file.getvalue()[2] >> 4]
        )
        return file.getvalue()[first_frame * 1000 // SAMPLE_RATE + (file.getvalue()[2] >> 1 & 1) :]

    constant = headless(bitrate_mode="CONSTANT", compression_level=0.3)
    assert decode_sound(constant, "a.mp3").shape[1] == pytest.approx(5 * SAMPLE_RATE, abs=3 * 1152)
    assert (
        decode_sound(constant[: len(constant) // 2], "a.mp3").shape[1] < 3 * SAMPLE_RATE
    )  # cannot be noticed
    with pytest.raises(UnusableSound, match=r"a.mp3: does not say how long it is"):
        decode_sound(headless(bitrate_mode="VARIABLE", compression_level=0.3), "a.mp3")


@pytest.mark.parametrize("stated", [0xFFFF_FFFF, 0x7FFF_FFFF - 36, 0x7FFF_F000])
def test_streamed_wav_of_unknown_length_is_whole(stated):
    data = bytearray(encode(sine()))
    struct.pack_into("<I", data, data.index(b"data") + 4, stated)
    assert decode_sound(bytes(data), "pipe.wav").shape == (1, SAMPLE_RATE // 2)


def unfinished(wav, rest=b""):
    """What a recorder leaves that crashed: the data has size 0."""
    at = wav.index(b"data") + 4
    return wav[:at] + bytes(4) + wav[at + 4 :] + rest


def test_wav_of_a_recorder_that_crashed_is_whole():
    wav = encode(sine(), subtype="PCM_16")
    filler = b"FLLR" + struct.pack("<I", 4044) + bytes(4044)
    at = wav.index(b"data")
    for data in (wav, wav[:at] + filler + wav[at:], encode(after(0.1, sine()), subtype="PCM_24")):
        np.testing.assert_array_equal(decode_sound(unfinished(data), "x.wav"), decode_sound(data, "x.wav"))
    rf64 = bytearray(encode(sine(), kind="rf64", subtype="PCM_16"))
    rf64[20:44] = bytes(24)
    assert decode_sound(bytes(rf64), "x.wav").shape == (1, SAMPLE_RATE // 2)
    empty = encode(np.zeros((1, 0)), subtype="PCM_16")
    with pytest.raises(UnusableSound, match="holds no samples"):
        decode_sound(unfinished(empty, b"LIST" + struct.pack("<I", 6) + b"INFOxx"), "x.wav")


def of_unknown_length(flac):
    """With a STREAMINFO as a pipe's: its count of samples, 36 bits, is 0."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def in_ogg(flac):
    """Ogg FLAC in pages of up to 65,025 bytes, as its mapping to Ogg has it."""
    stream, pages = b"\x7fFLAC\1\0\0\0" + flac, []
    for part in [stream[:51], *(stream[at : at + 65_025] for at in range(51, len(stream), 65_025))]:
        lacing = bytes([255] * (len(part) // 255) + [len(part) % 255] * (len(part) % 255 > 0))
        pages.append(b"OggS" + bytes(22) + bytes([len(lacing)]) + lacing + part)
    return b"".join(pages)


def test_flac_of_unknown_length_is_whole():
    flac = encode(noise(np.empty((2, 99_999)), 0.1), kind="flac")
    for data in (of_unknown_length(flac), in_ogg(flac), in_ogg(of_unknown_length(flac))):
        np.testing.assert_array_equal(decode_sound(data, "pipe.flac"), decode_sound(flac, "x.flac"))
        with pytest.raises(UnusableSound, match="is truncated"):
            decode_sound(data[:1000], "pipe.flac")
    with pytest.raises(UnusableSound, match="is truncated"):
        decode_sound(in_ogg(flac)[:-1000], "cut.ogg")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("seconds", [0.3, 3.0])
def test_ogg_need_not_mark_its_last_page(subtype, seconds):
    ogg = encode(sine(seconds=seconds, rate=48_000), 48_000, "ogg", subtype)
    last = bytearray(ogg[ogg.rindex(b"OggS") :])
    stored, last[22:26] = last[22:26], bytes(4)
    assert _ogg_checksum(last) == int.from_bytes(stored, "little")
    last[5] &= ~4
    last[22:26] = _ogg_checksum(last).to_bytes(4, "little")
    audio = decode_sound(ogg[: ogg.rindex(b"OggS")] + last, "message.ogg")
    np.testing.assert_array_equal(audio, decode_sound(ogg, "x.ogg"))


@pytest.mark.parametrize("kind", ["wav", "aiff", "rf64", "flac", "ogg", "mp3"])
def test_tags_in_front_cost_nothing(kind):
    data = encode(pluck(), kind=kind)
    tag = b"ID3\3\0\0\0\1\x6a\x30" + bytes([255, 251]) * 15_000  # 30,000 bytes, 7 bits in each of four
    np.testing.assert_array_equal(decode_sound(tag + tag + data, "x"), decode_sound(data, "x"))


def test_big_endian_wav_is_whole_and_its_cut_is_noticed():
    file = io.BytesIO()
    soundfile.write(file, sine()[0], SAMPLE_RATE, format="WAV", subtype="PCM_16", endian="BIG")
    assert decode_sound(file.getvalue(), "x.wav").shape == (1, SAMPLE_RATE // 2)
    with pytest.raises(UnusableSound, match="is truncated"):
        decode_sound(file.getvalue()[:20_000], "x.wav")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "chunk"), [("aiff", b"SSND"), ("rf64", b"ds64")])
def test_damaged_files_print_nothing(tmp_path, kind, chunk, capfd):
    data = encode(sine(), kind=kind, subtype="PCM_16")
    at = data.index(chunk)
    for damaged in (data.replace(chunk, b"SSNE"), data[: at + 4] + b"\xff" * 8 + data[at + 12 :]):
        (tmp_path / "damaged").write_bytes(damaged)
        with contextlib.suppress(UnusableSound):
            read_sound(tmp_path / "damaged")
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(encode(sine()),))
    writer.start()
    assert read_sound(pipe).shape == (1, SAMPLE_RATE // 2)
    writer.join()


def test_floats_scaled_like_integers_are_brought_down():
    for scale in (2**15, 2**31):
        audio = decode_sound(encode(scale * sine(), 48_000), "x.wav")
        assert np.abs(audio).max() == pytest.approx(1.0)
    hot = (8 * sine()).astype(np.float32)  # as a render may be
    np.testing.assert_array_equal(decode_sound(encode(hot), "x.wav"), hot)


def test_wav_with_chunks_around_its_data_is_whole():
    data = encode(sine(), subtype="PCM_U8")
    start = data.index(b"data")
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    assert decode_sound(data[:start] + odd + data[start:] + odd, "chunks.wav").shape == (1, SAMPLE_RATE // 2)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_refuses_silent_files(kind):
    with pytest.raises(UnusableSound, match=rf"quiet.{kind}: is silent .*make it louder"):
        decode_sound(encode(np.zeros((2, SAMPLE_RATE)), kind=kind), f"quiet.{kind}")


@pytest.mark.parametrize("rate", [44_100, 48_000])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_nan_and_infinity(value, rate):
    audio = sine()
    audio[0, 1000] = value
    with pytest.raises(UnusableSound, match=r"bad.wav: holds NaN or infinite samples"):
        decode_sound(encode(audio, rate), "bad.wav")


def test_refuses_no_samples_and_too_few():
    with pytest.raises(UnusableSound, match=r"none.wav: holds no samples"):
        decode_sound(encode(np.zeros((1, 0))), "none.wav")
    with pytest.raises(UnusableSound, match=r"blip.wav: lasts 40 ms; choose a sound of at least 50 ms"):
        decode_sound(encode(sine(seconds=0.04, rate=96_000), 96_000), "blip.wav")


def test_check_sound():
    check_sound(sine(level=0.0011))
    check_sound(sine(level=0.0011, channels=2).astype(np.float32))
    for audio, message in [
        (sine(level=0.0009), r"this sound: is silent \(peaks at -61 dBFS\)"),
        (np.full((1, SAMPLE_RATE), 0.1, np.float32), "holds nothing but silence|is silent"),
        (np.zeros((2, SAMPLE_RATE)), "holds nothing but silence"),
        (sine()[0], r"shape \(22050,\); pass \(channels, samples\)"),
        (sine(channels=2).T, r"shape \(22050, 2\)"),
        (np.ones((1, SAMPLE_RATE), np.int16), "holds int16 samples"),
    ]:
        with pytest.raises(UnusableSound, match=message):
            check_sound(audio)
    assert issubclass(UnusableSound, ValueError)


# Onsets

LEADS = [0.05, 0.5, 1.7]


@pytest.mark.parametrize("lead", [0.0, *LEADS])
@pytest.mark.parametrize(
    ("frequency", "snr"),
    [(f, snr) for f in (41.0, 220.0, 3000.0) for snr in (None, 60, 40, 20)] + [(220.0, 10)],
)
def test_onset_of_a_pluck_in_noise(lead, frequency, snr):
    audio = after(lead, pluck(frequency=frequency))
    if snr is not None:
        audio = audio + noise(audio, 0.35 * 10 ** (-snr / 20))
    assert find_onset(audio.astype(np.float32)) == pytest.approx(lead, abs=0.004)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("offset", [0.0, 0.05, -0.5])
def test_onset_despite_an_offset(lead, offset):
    audio = after(lead, pluck()) + offset
    assert find_onset(audio + noise(audio, 0.001)) == pytest.approx(lead, abs=0.003)
    assert find_onset(audio) == pytest.approx(lead, abs=0.003)
    assert find_onset(after(0.4, audio + noise(audio, 0.001))) == pytest.approx(0.4 + lead, abs=0.003)


@pytest.mark.parametrize("lead", [0.0, *LEADS])
@pytest.mark.parametrize("attack", [0.1, 1.0, 3.0])
def test_onset_of_a_pad_is_where_it_rises_from_nothing(lead, attack):
    swell = sine(220, 4.0) * np.minimum(1, np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE / attack)
    audio = after(lead, swell)
    assert find_onset(audio) == pytest.approx(lead, abs=0.003)
    assert find_onset(audio + noise(audio, 0.0003)) == pytest.approx(lead, abs=0.003 + 0.01 * attack)


def test_onset_passes_over_clicks_before_the_note():
    audio = after(1.0, pluck())
    audio[0, 20_000] = 1.0
    audio[0, 30_000:30_200] = noise(np.empty(200), 0.5)
    assert find_onset(audio) == pytest.approx(1.0, abs=0.003)
    assert find_onset(audio + noise(audio, 0.001)) == pytest.approx(1.0, abs=0.003)


def test_onset_of_a_lone_click_is_the_click():
    audio = np.zeros((1, 2 * SAMPLE_RATE))
    audio[0, SAMPLE_RATE] = 1.0
    assert find_onset(audio) == pytest.approx(1.0, abs=0.003)
    assert find_onset(audio + noise(audio, 0.0005)) == pytest.approx(1.0, abs=0.003)


def test_onset_keeps_the_quiet_beginning_of_a_sound_that_grows():
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    growing = sine(220, 3.0) * 10 ** (np.interp(time, [0.2, 1.5], [-20, 0]) / 20)
    tremolo = sine(220, 3.0) * (0.55 + 0.45 * np.sin(2 * np.pi * 5 * time))
    for audio in (growing, tremolo):
        assert find_onset(audio) == pytest.approx(0, abs=0.001)
        assert find_onset(after(0.5, audio)) == pytest.approx(0.5, abs=0.003)


def test_onset_is_zero_where_nothing_stands_out():
    for audio in (
        noise(np.empty((2, SAMPLE_RATE)), 0.1),
        np.zeros((1, SAMPLE_RATE)),
        np.ones((1, 10)),
        sine(30),
    ):
        assert find_onset(audio) == pytest.approx(0, abs=0.001)


def test_onset_of_one_channel_is_the_onset():
    audio = np.concatenate([after(0.5, pluck()), np.zeros((1, round(1.5 * SAMPLE_RATE)))])
    assert find_onset(audio) == pytest.approx(0.5, abs=0.003)
    assert find_onset(np.concatenate([audio[:1], -audio[:1]])) == pytest.approx(0.5, abs=0.003)


# Preparing


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.1, 0.5, 2.0, 4.0])
def test_prepare_gives_the_shape_asked_for(channels, seconds):
    audio = np.repeat(after(0.7, pluck()), channels, axis=0).astype(np.float32)
    note = prepare(audio, seconds)
    assert note.dtype == np.float32 and note.shape == (channels, round(seconds * SAMPLE_RATE))
    assert 0.001 <= find_onset(note) <= 0.006  # a few ms of lead, and the whole attack
    first = round(0.006 * SAMPLE_RATE)
    assert np.abs(note[:, first : first + 2000]).max() == pytest.approx(0.5, abs=0.02)


def test_prepare_removes_the_offset_and_pads_with_zeros():
    audio = after(0.7, pluck()) + 0.2
    note = prepare(audio, 4.0)
    assert np.abs(note[:, : SAMPLE_RATE // 500]).max() < 0.001
    assert (note[:, round(1.1 * SAMPLE_RATE) :] == 0).all()


def test_prepare_fades_what_it_cuts_and_only_that():
    cut = prepare(sine(220, 3.0), 1.0)
    assert cut[0, -1] == 0 and np.abs(cut[0, -400:-1]).max() > 0.3
    assert (
        np.abs(np.diff(prepare(sine(220, 1.003), 2.0))).max() < 0.03
    )  # an abrupt end would step by up to 0.5
    whole = sine(220, 1.0)
    np.testing.assert_allclose(prepare(whole, 1.0), whole, atol=1e-6)


def test_prepare_does_not_change_its_input_and_refuses_bad_ones():
    audio = after(0.2, pluck()).astype(np.float32)
    before = audio.copy()
    prepare(audio, 0.3)
    np.testing.assert_array_equal(audio, before)
    with pytest.raises(UnusableSound, match="is silent"):
        prepare(np.zeros((1, SAMPLE_RATE), np.float32))
    with pytest.raises(ValueError, match="seconds is 0; it must be positive"):
        prepare(audio, 0)


# Loudness


def test_k_weighting_is_the_standards_at_48_khz():
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285], [1, -1.69065929318241, 0.73248077421585]
    high_pass = [1.0, -2.0, 1.0], [1, -1.99004745483398, 0.99007225036621]  # BS.1770-4, tables 1 and 2
    b, a = _k_weighting(48_000)
    np.testing.assert_allclose(b, np.convolve(shelf[0], high_pass[0]), atol=1e-8)
    np.testing.assert_allclose(a, np.convolve(shelf[1], high_pass[1]), atol=1e-8)


def tone(*levels, frequency=1000.0, channels=2):
    """EBU Tech 3341's test signals: (seconds, dBFS peak) one after the other, equal in both channels."""
    gain = np.concatenate(
        [np.full(round(seconds * SAMPLE_RATE), 10 ** (dbfs / 20)) for seconds, dbfs in levels]
    )
    return np.repeat(gain * sine(frequency, gain.size / SAMPLE_RATE, level=1.0), channels, axis=0).astype(
        np.float32
    )


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([(20, -23)], -23.0),  # case 1
        ([(20, -33)], -33.0),  # case 2
        ([(10, -36), (60, -23), (10, -36)], -23.0),  # case 3: the relative gate
        ([(10, -72), (10, -36), (60, -23), (10, -36), (10, -72)], -23.0),  # case 4: the absolute gate
        ([(20, -26), (20.1, -20), (20, -26)], -23.0),  # case 5
    ],
)
def test_loudness_of_ebu_tech_3341(levels, expected):
    assert loudness(tone(*levels)) == pytest.approx(expected, abs=0.1)


def test_loudness_of_one_channel_is_3_lu_less():
    assert loudness(tone((4, 0), frequency=997, channels=1)) == pytest.approx(
        -3.01, abs=0.01
    )  # BS.1770-4, annex 1
    assert loudness(tone((4, 0), frequency=997)) == pytest.approx(0.0, abs=0.01)


def test_loudness_of_silence_and_of_what_no_gate_passes():
    assert loudness(np.zeros((1, 4 * SAMPLE_RATE), np.float32)) == -np.inf
    assert loudness(tone((1, -75))) == -np.inf
    assert loudness(np.zeros((1, 100), np.float32)) == -np.inf
    assert loudness(np.zeros((1, 0), np.float32)) == -np.inf


def test_loudness_of_less_than_a_block():
    assert loudness(tone((0.2, -23))) == pytest.approx(-23, abs=0.2)
    assert loudness(tone((0.39, -23))) == pytest.approx(loudness(tone((0.41, -23))), abs=0.1)


def test_loudness_does_not_care_for_silence_around_the_note():
    note = after(0.3, pluck(3.0, decay=10.0)).astype(np.float32)
    assert loudness(np.pad(note, ((0, 0), (0, 8 * SAMPLE_RATE)))) == pytest.approx(loudness(note), abs=0.3)


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.4, 1.0, 4.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_as_loud_as_is_told_by_the_loudness(seconds, channels):
    steady = noise(np.empty((channels, round(seconds * SAMPLE_RATE))), 0.01)
    decaying = steady * np.exp(-np.arange(steady.shape[1]) / 2000)
    late = steady * (np.arange(steady.shape[1]) > 0.9 * steady.shape[1])
    for audio in (steady, decaying, late, 1e-3 * steady, 0 * steady):
        level = loudness(audio)
        floors = [-np.inf, -90, -70, -55, -40, 0] + [level + step for step in (-20, -5, -0.01, 0.01, 5)] * (
            level > -100
        )
        for floor in floors:
            assert is_as_loud_as(audio, floor) == (level >= floor), (level, floor)


# Writing


def test_written_sounds_read_back_bit_for_bit(tmp_path):
    audio = (3 * noise(np.empty((2, 5000)), 1.0)).astype(np.float32)
    write_sound(tmp_path / "loud.wav", audio)
    np.testing.assert_array_equal(read_sound(tmp_path / "loud.wav"), audio)
    assert soundfile.info(tmp_path / "loud.wav").subtype == "FLOAT"
    write_sound(str(tmp_path / "again.WAV"), audio)
    assert (tmp_path / "again.WAV").read_bytes() == (tmp_path / "loud.wav").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_sound(path, sine())
    old = path.read_bytes()

    def half(file, *_):
        file.write_bytes(b"RIFF")
        raise OSError("disk full")

    monkeypatch.setattr("scipy.io.wavfile.write", half)
    with pytest.raises(OSError, match="disk full"):
        write_sound(path, sine())
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_refuses_to_write_wav_under_another_name(tmp_path):
    with pytest.raises(ValueError, match=r"a.mp3: .* end the name in .wav"):
        write_sound(tmp_path / "a.mp3", sine())


def test_importing_takes_numpy_and_nothing_slow():
    script = "import sys, synthnb.sound; print({m for m in sys.modules if '.' not in m})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "numpy" in loaded and not any(name in loaded for name in ("scipy", "numba", "soundfile", "soxr"))
