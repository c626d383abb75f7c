"""One patch that may have made the sound, and the key that plays it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np

from synthnb.pitch import Pitch, find_pitch
from synthnb.space import Note, Patch
from synthnb.synths import Synth

SHORTEST = 0.05  # seconds of a note


@dataclass(frozen=True)
class Press:
    """How patches are played for a recording: the same sound as where the search found it, but with another key.

    Attributes:
        key: MIDI number that was recorded; None leaves each patch its own.
        above: semitones from there, for a recording of another note.
        longer: seconds that the key is held longer than in the first recording.
        velocity: MIDI velocity; None is the space's.
    """

    key: int | None = None
    above: int = 0
    longer: float = 0.0
    velocity: int | None = None

    def __call__(
        self, synth: Synth, patch: Patch, note: Note, seconds: float = math.inf
    ) -> tuple[Patch, Note]:
        """Patch and note to play, in a clip of so many seconds. Octaves from the key where the patch ends before it."""
        patch, note = at_key(synth, patch, note, self.key)
        end = min(max(note.end + self.longer, note.start + SHORTEST), max(seconds, note.end))
        pitch = min(max(note.pitch + self.above, 0), 127)
        return patch, Note(pitch, self.velocity or note.velocity, note.start, end)


def at_key(synth: Synth, patch: Patch, note: Note, key: int | None) -> tuple[Patch, Note]:
    """The same sound played with `key`; octaves from it where the patch doesn't reach; else, or for None, as it is."""
    for octaves in (0, 1, -1, 2, -2) if key is not None else ():
        pitch = key + 12 * octaves
        moved = synth.transpose(patch, note.pitch - pitch) if 0 <= pitch <= 127 else None
        if moved is not None:
            return moved, note._replace(pitch=pitch)
    return patch, note


@dataclass(frozen=True, eq=False)
class Candidate:
    """One patch that may have made the sound.

    Attributes:
        vector: float32 `(width,)`, where the search found it.
        patch, note: what it plays; the same sound, but with the key that was recorded, if the patch can be transposed.
        audio: float32 `(channels, samples)`, its render, the one that was ranked.
        distance: to the target; 0 is the same sound, an octave off 2 to 3.
        origin: the move that found it, see `MOVES`.
    """

    vector: np.ndarray
    patch: Patch
    note: Note
    audio: np.ndarray = field(repr=False)
    distance: float
    origin: str

    @functools.cached_property
    def pitch(self) -> Pitch | None:
        """That of its sound; None if it has none."""
        return find_pitch(self.audio)
