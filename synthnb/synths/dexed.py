"""The DX7: `dexed-py`, the engine of the Dexed plugin, with its own preset format (`.syx`).

A voice is 155 bytes of system-exclusive data ("VCED": six operators from 6 down to 1, then pitch envelope,
algorithm, LFO, transpose and a ten-letter name); a bank packs 32 voices into 128 bytes each ("VMEM"). A patch names
the 145 bytes that sound; everything is a whole number, so patch to file to patch is exact. Layout: Yamaha DX7
operation manual, "MIDI data format".
"""

from __future__ import annotations

import time
from pathlib import Path

import dexed
import numpy as np

from synthnb.space import Note, Patch
from synthnb.synths import PresetError

SAMPLE_RATE = 44_100
VOICE_HEADER = bytes([0xF0, 0x43, 0x00, 0x00, 0x01, 0x1B])  # Yamaha, channel 1, one voice, 155 bytes
BANK_HEADER = bytes([0xF0, 0x43, 0x00, 0x09, 0x20, 0x00])  # Yamaha, channel 1, 32 voices, 4096 bytes
VOICE_BYTES, BANK_BYTES, BANK_VOICES = 155, 4096, 32

CURVES = ("-lin", "-exp", "+exp", "+lin")
LFO_WAVES = ("triangle", "saw down", "saw up", "square", "sine", "sample & hold")
ALGORITHMS = tuple(str(number) for number in range(1, 33))
RATIOS = tuple(str(number) for number in range(32))

#: (name, highest value or choices) of one operator's 21 bytes, in the order of the bytes.
OPERATOR = (
    *((f"rate{i}", 99) for i in range(1, 5)),
    *((f"level{i}", 99) for i in range(1, 5)),
    ("breakpoint", 99),
    ("left_depth", 99),
    ("right_depth", 99),
    ("left_curve", CURVES),
    ("right_curve", CURVES),
    ("rate_scaling", 7),
    ("amp_mod_sensitivity", 3),
    ("velocity_sensitivity", 7),
    ("output_level", 99),
    ("mode", ("ratio", "fixed")),
    ("coarse", RATIOS),
    ("fine", 99),
    ("detune", 14),
)
#: The same for the 19 bytes that follow the operators.
VOICE = (
    *((f"pitch_rate{i}", 99) for i in range(1, 5)),
    *((f"pitch_level{i}", 99) for i in range(1, 5)),
    ("algorithm", ALGORITHMS),
    ("feedback", 7),
    ("osc_key_sync", ("off", "on")),
    ("lfo_speed", 99),
    ("lfo_delay", 99),
    ("lfo_pitch_mod_depth", 99),
    ("lfo_amp_mod_depth", 99),
    ("lfo_sync", ("off", "on")),
    ("lfo_wave", LFO_WAVES),
    ("pitch_mod_sensitivity", 7),
    ("transpose", 48),
)
#: Every parameter in the order of a voice's bytes: operator 6 first, as the DX7 stores them.
LAYOUT = tuple((f"op{op}_{name}", top) for op in range(6, 0, -1) for name, top in OPERATOR) + VOICE


def voice_bytes(patch: Patch, name: str = "") -> bytes:
    """A patch as the 155 bytes of a DX7 voice. Raises `PresetError` on a missing or impossible value."""
    data = bytearray()
    for parameter, top in LAYOUT:
        try:
            value = patch[parameter]
            byte = top.index(str(value)) if isinstance(top, tuple) else int(value)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PresetError(f"'{parameter}' does not fit a DX7 voice: {error}") from None
        if not isinstance(top, tuple) and not (0 <= byte <= top and byte == value):
            raise PresetError(f"'{parameter}' is {value}; a DX7 takes whole numbers from 0 to {top}")
        data.append(byte)
    return bytes(data) + name.encode("ascii", "replace")[:10].ljust(10)


def patch_from_bytes(data: bytes) -> Patch:
    """At least 145 voice bytes to a patch; a byte above its range is brought into it, as Dexed does."""
    data = dexed.Patch.from_sysex(data.ljust(VOICE_BYTES)).to_sysex()
    return {name: top[byte] if isinstance(top, tuple) else byte for (name, top), byte in zip(LAYOUT, data)}


def _checksum(payload: bytes) -> int:
    return -sum(payload) & 0x7F


class Dexed:
    """The DX7 engine: mono, deterministic, nothing carried over from one note to the next."""

    channels = 1
    preset_suffix = ".syx"

    def __init__(self):
        self._engine = dexed.DexedSynth(SAMPLE_RATE)._synth

    def render(self, patch: Patch, note: Note, seconds: float) -> np.ndarray:
        """Play one note: float32 `(2, round(seconds * 44100))`, both channels equal, full scale not limited to 1.

        The engine starts its envelopes at the note, so a later `start` is the same sound after that much silence.
        """
        samples, first = round(seconds * SAMPLE_RATE), round(note.start * SAMPLE_RATE)
        self._engine.load_sysex(voice_bytes(patch) + b"\x3f")  # all six operators on
        # A few samples more than needed: the engine rounds its lengths down.
        tail = self._engine.render(
            note.pitch, note.velocity, note.end - note.start, (samples - first + 64) / SAMPLE_RATE
        )
        audio = np.empty((2, samples), dtype=np.float32)
        audio[:, :first] = 0
        audio[:, first:] = tail[: samples - first]
        return audio

    def ceiling(self, patch: Patch, note: Note) -> float:
        """Infinite: 97 of 100 random patches are loud enough, so there is little to tell in advance."""
        return float("inf")

    def engine_seconds(self, patch: Patch, note: Note, seconds: float) -> float:
        """Seconds that the engine itself takes for this note."""
        voice = voice_bytes(patch) + b"\x3f"
        start = time.perf_counter()
        self._engine.load_sysex(voice)
        self._engine.render(note.pitch, note.velocity, note.end - note.start, seconds - note.start)
        return time.perf_counter() - start

    def save_preset(self, path: str | Path, patch: Patch, name: str) -> Path:
        """Write a single-voice `.syx` (163 bytes) that Dexed and a DX7 load. Returns its path."""
        voice = voice_bytes(patch, name)
        path = Path(path)
        path.write_bytes(VOICE_HEADER + voice + bytes([_checksum(voice), 0xF7]))
        return path

    def save_bank(self, path: str | Path, patches: list[Patch], names: list[str]) -> Path:
        """Write up to 32 patches as a bank `.syx` (4104 bytes), the rest filled with the last one."""
        if not 1 <= len(patches) <= BANK_VOICES or len(names) != len(patches):
            raise PresetError(
                f"a bank takes 1 to 32 patches, each with a name; got {len(patches)} and {len(names)}"
            )
        voices = [voice_bytes(patch, name) for patch, name in zip(patches, names)]
        voices += [voices[-1]] * (BANK_VOICES - len(voices))
        payload = b"".join(dexed.Patch.from_sysex(voice + b"\x3f").to_packed() for voice in voices)
        path = Path(path)
        path.write_bytes(BANK_HEADER + payload + bytes([_checksum(payload), 0xF7]))
        return path

    def load_preset(self, path: str | Path) -> Patch:
        """Read the voice of a single-voice `.syx`, or the first of a bank. Raises `PresetError`."""
        return self.load_bank(path)[0][1]

    def load_bank(self, path: str | Path) -> list[tuple[str, Patch]]:
        """Read every voice of a `.syx`, single or bank, as `(name, patch)`. Raises `PresetError`."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PresetError(f"{path}: {error.strerror}; give the path of a DX7 .syx file") from error
        header = data[:2] + bytes(byte & 0xF0 for byte in data[2:3]) + data[3:6]  # on any MIDI channel
        if header == VOICE_HEADER:
            voices = [self._payload(data, VOICE_BYTES, path)]
        elif header == BANK_HEADER:
            payload = self._payload(data, BANK_BYTES, path)
            packed = [payload[i : i + 128] for i in range(0, BANK_BYTES, 128)]
            voices = [dexed.Patch.from_packed(voice).to_sysex() for voice in packed]
        else:
            raise PresetError(
                f"{path}: not a DX7 voice or bank (.syx); it starts with {data[:6].hex(' ') or 'nothing'}"
            )
        return [(v[145:155].decode("ascii", "replace").strip(), patch_from_bytes(v)) for v in voices]

    @staticmethod
    def _payload(data: bytes, size: int, path) -> bytes:
        if len(data) < size + 8 or data[size + 7] != 0xF7:
            raise PresetError(
                f"{path}: truncated; a DX7 dump of this kind has {size + 8} bytes, the file {len(data)}"
            )
        payload = data[6 : size + 6]
        if _checksum(payload) != data[size + 6]:
            raise PresetError(f"{path}: the checksum is wrong, the file is damaged")
        return payload
