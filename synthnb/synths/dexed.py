"""The DX7: `dexed-py`, the engine of the Dexed plugin, with its own preset format (`.syx`).

A voice is 155 bytes of system-exclusive data ("VCED": six operators from 6 down to 1, then pitch envelope,
algorithm, LFO, transpose and a ten-letter name); a bank packs 32 voices into 128 bytes each ("VMEM"). A file holds any
number of such dumps, each from F0 to F7, and perhaps those of other kinds between them. A patch names the 145 bytes
that sound; everything is a whole number, so patch to file to patch is exact. Layout: Yamaha DX7 operation manual,
"MIDI data format".
"""

from __future__ import annotations

import itertools
import re
import time
import unicodedata
import warnings
from pathlib import Path

import dexed
import numpy as np

from synthnb.sound import SAMPLE_RATE
from synthnb.space import Note, Patch
from synthnb.synths import PresetError

VOICE_HEADER = bytes([0xF0, 0x43, 0x00, 0x00, 0x01, 0x1B])  # Yamaha, channel 1, one voice, 155 bytes
BANK_HEADER = bytes([0xF0, 0x43, 0x00, 0x09, 0x20, 0x00])  # Yamaha, channel 1, 32 voices, 4096 bytes
HEADER = re.compile(rb"\xf0\x43[\x00-\x0f](?:(\x00\x01\x1b)|\x09\x20\x00)")  # either, on any channel
VOICE_BYTES, BANK_BYTES, PACKED_BYTES = 155, 4096, 128

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
    return bytes(data) + name.encode("ascii").ljust(10)


def voice_names(names: list[str]) -> list[str]:
    """Names as a DX7 can show them: ten ASCII letters at most, none twice (`BRASS`, `BRASS 2`)."""
    taken: list[str] = []
    for name in names:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        plain = "".join(filter(str.isprintable, plain)).strip() or "synthnb"
        numbered = (f"{plain[: 9 - len(str(i))]} {i}" for i in itertools.count(2))
        taken.append(next(own for own in itertools.chain([plain[:10].strip()], numbered) if own not in taken))
    return taken


def patch_from_bytes(data: bytes) -> Patch:
    """At least 145 voice bytes to a patch; a byte above its range is brought into it, as Dexed does."""
    data = dexed.Patch.from_sysex(data.ljust(VOICE_BYTES)).to_sysex()
    return {name: top[byte] if isinstance(top, tuple) else byte for (name, top), byte in zip(LAYOUT, data)}


def _name(data: bytes) -> str:
    letters = bytes(byte & 0x7F for byte in data).decode("ascii")
    return "".join(letter if letter.isprintable() else " " for letter in letters).strip()


def _initial_voice() -> bytes:
    voice = dexed.Patch()
    for i in range(1, 6):  # dexed-py's own has all six operators at full level
        voice.op[i].output_level = 0
    return voice.to_packed()


def _checksum(payload: bytes) -> int:
    return -sum(payload) & 0x7F


class Dexed:
    """The DX7 engine: mono, deterministic, nothing carried over from one note to the next."""

    channels = 1
    preset_suffix = ".syx"
    bank_size = 32
    how_to_load = (
        "In Dexed, press CART, then LOAD, and choose the .syx file.",
        "Voice 1 is then the one that plays; the others are in the list of programs.",
    )

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

    def transpose(self, patch: Patch, semitones: int) -> Patch | None:
        """The same sound, so many semitones higher, to the bit that of a higher key. None beyond two octaves from C3.

        Operators of fixed frequency stay where they are, as they do for any key.
        """
        moved = patch["transpose"] + semitones
        return {**patch, "transpose": moved} if 0 <= moved <= 48 else None

    def save_preset(self, path: str | Path, patch: Patch, name: str) -> Path:
        """Write a single voice (163 bytes): a DX7 takes it, Dexed's file browser only banks. Returns its path."""
        voice = voice_bytes(patch, *voice_names([name]))
        return _write(path, VOICE_HEADER, voice)

    def save_bank(self, path: str | Path, voices: list[tuple[str, Patch]]) -> Path:
        """Write 1 to 32 named patches as a bank (4,104 bytes), the rest the initial voice. Returns its path.

        Names are made as `voice_names` says. Raises `PresetError`.
        """
        if not 1 <= len(voices) <= self.bank_size:
            raise PresetError(f"a bank takes 1 to {self.bank_size} voices; got {len(voices)}")
        names = voice_names([name for name, _ in voices])
        own = [voice_bytes(patch, name) + b"\x3f" for name, (_, patch) in zip(names, voices)]
        packed = [dexed.Patch.from_sysex(voice).to_packed() for voice in own]
        return _write(path, BANK_HEADER, b"".join(packed + [_initial_voice()] * (self.bank_size - len(own))))

    def load_preset(self, path: str | Path) -> Patch:
        """Read the first voice of a `.syx`. Raises `PresetError`."""
        return self.load_bank(path)[0][1]

    def load_bank(self, path: str | Path) -> list[tuple[str, Patch]]:
        """Read every voice of a `.syx`, of all its single voices and banks, as `(name, patch)`.

        Dumps of other kinds are passed over; one that is damaged is left out with a warning. Raises `PresetError` if
        nothing is left.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PresetError(f"{path}: {error.strerror}; give the path of a DX7 .syx file") from error
        voices, problems = [], []
        for number, header in enumerate(HEADER.finditer(data), start=1):
            size = VOICE_BYTES if header[1] else BANK_BYTES
            payload = data[header.end() : header.end() + size]
            rest = data[header.end() + size : header.end() + size + 2]
            if rest[1:] != b"\xf7":
                problems.append(f"dump {number} is truncated; one of its kind has {size + 8} bytes")
            elif rest[0] != _checksum(payload):
                problems.append(f"the checksum of dump {number} is wrong, it is damaged")
            elif header[1]:
                voices.append(payload)
            else:
                packed = (payload[at : at + PACKED_BYTES] for at in range(0, BANK_BYTES, PACKED_BYTES))
                voices += [dexed.Patch.from_packed(voice).to_sysex() for voice in packed]
        if not voices:
            start = data[:6].hex(" ") or "nothing"
            problem = next(iter(problems), f"not a DX7 voice or bank (.syx); it starts with {start}")
            raise PresetError(f"{path}: {problem}")
        for problem in problems:
            warnings.warn(f"{path}: {problem}; it is left out", stacklevel=2)
        return [(_name(voice[145:155]), patch_from_bytes(voice)) for voice in voices]


def _write(path: str | Path, header: bytes, payload: bytes) -> Path:
    path = Path(path)
    path.write_bytes(header + payload + bytes([_checksum(payload), 0xF7]))
    return path
