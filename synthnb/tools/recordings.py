"""Make recordings to match of a General MIDI soundfont: `python -m synthnb.tools.recordings SOUNDFONT FOLDER`.

With FluidR3 GM (Frank Wen, MIT licence; Debian's fluid-soundfont-gm) and FluidSynth these are eight of the recordings
that notebook 09 was run with: other programs and keys than datasets/examples. Each is one note, mono, 4 s, its peak at
-3.1 dBFS, without reverb or chorus. The hashes that are printed are of the samples, as FLAC files differ with their
encoder.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from synthnb.sound import SAMPLE_RATE, find_onset, read_sound

SECONDS, PEAK = 4.0, 0.7
DRUMS = -1  # in place of a program: the percussion channel
TICKS = 480  # in a second: a quarter note at 60 a minute


class Recording(NamedTuple):
    """General MIDI program (from 0, or `DRUMS`), MIDI key and velocity, seconds until the key is released."""

    program: int
    key: int
    velocity: int
    held: float

    @property
    def name(self) -> str:
        return f"gm_{'drum' if self.program == DRUMS else f'{self.program:03d}'}_{self.key:03d}"


RECORDINGS = (
    Recording(0, 50, 90, 3.0),  # grand piano
    Recording(6, 65, 100, 2.0),  # harpsichord
    Recording(12, 67, 100, 2.0),  # marimba
    Recording(24, 57, 95, 3.0),  # nylon guitar
    Recording(40, 69, 90, 2.5),  # violin
    Recording(56, 70, 95, 1.5),  # trumpet
    Recording(71, 58, 90, 2.5),  # clarinet
    Recording(DRUMS, 38, 100, 1.0),  # snare drum
)


def record(soundfont: str | Path, recording: Recording) -> np.ndarray:
    """Play one note with FluidSynth: int16 `(samples,)`, from 3 ms before its onset on.

    Raises `FileNotFoundError` if `fluidsynth` isn't installed, `subprocess.CalledProcessError` if it fails.
    """
    if not shutil.which("fluidsynth"):
        raise FileNotFoundError("fluidsynth isn't installed; on Debian or Ubuntu: apt install fluidsynth")
    with tempfile.TemporaryDirectory() as folder:
        song, played = Path(folder, "note.mid"), Path(folder, "note.wav")
        song.write_bytes(_song(recording))
        quiet = ["-n", "-i", "-q", "-R", "0", "-C", "0", "-g", "0.6", "-r", str(SAMPLE_RATE), "-O", "float"]
        subprocess.run(["fluidsynth", *quiet, "-F", str(played), str(soundfont), str(song)], check=True)
        audio = read_sound(played).mean(axis=0)
    audio = audio[max(0, round((find_onset(audio[None]) - 0.003) * SAMPLE_RATE)) :][
        : round(SECONDS * SAMPLE_RATE)
    ]
    audio = np.pad(audio, (0, round(SECONDS * SAMPLE_RATE) - len(audio)))
    return np.round(audio * (PEAK / np.abs(audio).max()) * 32767).astype(np.int16)


def make(soundfont: str | Path, folder: str | Path) -> dict[str, str]:
    """Write all of `RECORDINGS` as FLAC into a folder. Returns the SHA-256 of the samples by file name."""
    folder, hashes = Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    for recording in RECORDINGS:
        samples = record(soundfont, recording)
        path = folder / f"{recording.name}.flac"
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        hashes[path.name] = hashlib.sha256(samples.tobytes()).hexdigest()
    return hashes


def _song(recording: Recording) -> bytes:
    """A standard MIDI file with that note, then silence up to a second after the end."""
    channel = 9 if recording.program == DRUMS else 0
    program = b"" if recording.program == DRUMS else bytes([0, 0xC0, recording.program])
    on, off = (bytes([status | channel, recording.key, recording.velocity]) for status in (0x90, 0x80))
    rest = SECONDS + 1 - recording.held
    events = (
        b"\x00\xff\x51\x03\x0f\x42\x40"  # 1,000,000 us a quarter note
        + program + b"\x00" + on + _delta(recording.held) + off + _delta(rest) + b"\xff\x2f\x00"
    )  # fmt: skip
    header = b"MThd" + (6).to_bytes(4, "big") + b"\x00\x00\x00\x01" + TICKS.to_bytes(2, "big")
    return header + b"MTrk" + len(events).to_bytes(4, "big") + events


def _delta(seconds: float) -> bytes:
    """A variable-length quantity of ticks."""
    ticks = round(seconds * TICKS)
    return bytes([0x80 | ticks >> 7, ticks & 0x7F]) if ticks > 0x7F else bytes([ticks])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m synthnb.tools.recordings", description="Make recordings of a soundfont."
    )
    parser.add_argument("soundfont", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for name, digest in make(arguments.soundfont, arguments.folder).items():
        print(f"{digest}  {name}")


if __name__ == "__main__":
    main()
