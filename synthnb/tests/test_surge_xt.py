"""Surge XT: its presets, its spaces, and, where it is installed, that patch, plugin and file agree."""

import os
import struct

import pytest

from synthnb.space import ParameterSpace
from synthnb.synths import PresetError, SynthNotFound, open_synth
from synthnb.synths.surge_xt import CHUNK_HEADER, CLASS_ID, read_chunk
from synthnb.synths.vst3 import FOLDERS_VARIABLE, preset_file

XML = b'<patch revision="24"><parameters><a_pitch type="2" value="1.0"/></parameters></patch>'
CHUNK = CHUNK_HEADER.pack(b"sub3", len(XML), *[0] * 6) + XML
FXP = struct.pack(">4sI4s4sIII28sI", b"CcnK", 0, b"FPCh", b"\0\0\0\1", 0, 1, 1, b"name", len(CHUNK))
FXP = FXP[:16] + b"cjs3" + FXP[20:] + CHUNK


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
    monkeypatch.setattr("synthnb.synths.vst3.folders", lambda: [tmp_path])
    with pytest.raises(SynthNotFound, match="Surge XT is not installed; run 'make surge'"):
        open_synth(ParameterSpace.load("surge_simple"))
