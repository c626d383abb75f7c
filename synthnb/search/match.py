"""What a search found: candidates, the best first, how to play them, and the files that keep one."""

from __future__ import annotations

import errno
import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import librosa
import numpy as np
import pandas as pd

from synthnb.metrics import all_metrics
from synthnb.pitch import Pitch
from synthnb.sound import write_sound
from synthnb.space import Note, ParameterSpace, Patch
from synthnb.synths import Synth

KEPT = 32  # candidates of a match: as many as a bank of the DX7 holds
HEARD = 3  # cents; less is nothing to listeners, nor to what finds pitches


@dataclass(frozen=True, eq=False)
class Candidate:
    """One patch that may have made the sound.

    Attributes:
        vector: float32 `(width,)`, where the search found it.
        patch, note: what it plays; the same sound, but with the key that was recorded, if the patch can be transposed.
        audio: float32 `(channels, samples)`, its render, the one that was ranked.
        distance: `TunedDistance` to the target; 0 is the same sound, 1 about as far as an octave.
        cents: how much higher than the target it sounds; None if either is unpitched.
        origin: `library` (a training clip), `noise` or `edit` (the flow's, without and with a source), `moved` (one of
            those, transposed), `refined`.
    """

    vector: np.ndarray
    patch: Patch
    note: Note
    audio: np.ndarray = field(repr=False)
    distance: float
    cents: float | None
    origin: str


@dataclass
class Match:
    """The candidates of a search, the best first, and how it went.

    Attributes:
        target: float32 `(channels, samples)`, the sound as it was compared; a very quiet one is raised.
        pitch: of the target; None if it is unpitched.
        history: `(seconds, renders, distance of the best)` after every step.
        refining: seconds spent on refining so far.
    """

    target: np.ndarray
    space: ParameterSpace
    synth: Synth = field(repr=False)
    pitch: Pitch | None
    candidates: list[Candidate] = field(default_factory=list)
    history: list[tuple[float, int, float]] = field(default_factory=list)
    refining: float = 0.0

    @property
    def key(self) -> int | None:
        """The MIDI key that was recorded, so the key to press; None if the recording is unpitched."""
        return self.pitch and self.pitch.key

    @property
    def best(self) -> Candidate:
        """The candidate nearest to the target, in tune if it has a pitch."""
        return self.candidates[0]

    @property
    def first(self) -> Candidate:
        """The nearest of those that were proposed: where refining began."""
        return next(c for c in self.candidates if c.origin != "refined")

    def cents(self, candidate: Candidate | None = None) -> float | None:
        """How much higher than the target a candidate (default: the best) sounds; None if either is unpitched."""
        return (candidate or self.best).cents

    def add(self, found: Iterable[Candidate]) -> None:
        """Rank more candidates among those that are there; the nearest `KEPT` stay."""
        self.candidates = sorted([*self.candidates, *found], key=lambda c: c.distance)[:KEPT]

    def how_to_play(self, candidate: Candidate | None = None) -> str:
        """Which key to press for a candidate (default: the best), and how well it is in tune then."""
        chosen = candidate or self.best
        press = f"Press {_named(chosen.note.pitch)}"
        if self.key is None:
            return f"{press}; the recording is unpitched."
        if chosen.note.pitch != self.key:
            press += f" for the {_named(self.key)} that was recorded"
        cents = self.cents(chosen)
        if cents is None:
            return f"{press}; what sounds is unpitched."
        if abs(cents) < HEARD:
            return f"{press}; in tune."
        return f"{press}; {abs(cents):.0f} cents {'sharp' if cents > 0 else 'flat'}."

    def audio(self, candidate: Candidate | None = None) -> np.ndarray:
        """A candidate's render (default: the best's) at the target's RMS, `(channels, samples)`."""
        audio = (candidate or self.best).audio
        return audio * gain(self.target, audio)

    def metrics(self, candidate: Candidate | None = None) -> dict[str, float]:
        """MSS, wMFCC, SOT and RMS of a candidate (default: the best), at the target's level."""
        return all_metrics(self.target, self.audio(candidate))

    def table(self, count: int = 8) -> pd.DataFrame:
        """The first `count` candidates: origin, distance, key to press, cents and metrics, one row each."""
        rows = [
            {
                "origin": c.origin,
                "distance": c.distance,
                "key": c.note.pitch,
                "cents": c.cents,
                **self.metrics(c),
            }
            for c in self.candidates[:count]
        ]
        return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="rank"))

    def differences(self, candidate: Candidate | None = None) -> pd.DataFrame:
        """Where a candidate (default: the best) departs from the synth's default patch, the farthest first.

        One row for each parameter that differs: `parameter`, `value`, `default`, both to four digits.
        """
        patch = (candidate or self.best).patch
        rows = []
        for p in self.space.parameters:
            if patch[p.name] != p.default:
                far = 1.0 if p.kind == "categorical" else abs(p.to_unit(patch[p.name]) - p.to_unit(p.default))
                rows.append((far, p.name, _short(patch[p.name]), _short(p.default)))
        rows = [row for _, *row in sorted(rows, key=lambda row: -row[0])]
        return pd.DataFrame(rows, columns=["parameter", "value", "default"])

    def save(
        self,
        folder: str | Path,
        name: str = "match",
        candidate: Candidate | None = None,
        single: bool = False,
        recording: str | Path | None = None,
    ) -> dict[str, Path]:
        """Write a candidate (default: the best): preset, target and match as wav at equal level, and `match.json`.

        Args:
            folder, name, recording: as in `output_paths`, which says what it raises.
            single: write a preset with one voice, where the synth has banks. By default the candidate is the first
                voice of a bank, and the others that are played with the same key follow it.

        Returns:
            The paths by kind: `preset`, `target`, `match`, `report`; `picture` is for the caller to draw.
        """
        chosen = candidate or self.best
        paths = output_paths(folder, name, self.synth, recording)
        seconds, renders, _ = self.history[-1]
        cents = self.cents(chosen)
        report = {
            "distance": round(chosen.distance, 4),
            "distances": {key: round(value, 4) for key, value in self.metrics(chosen).items()},
            "first": round(self.first.distance, 4),
            "renders": renders,
            "seconds": round(seconds, 1),
            "synth": self.space.synth,
            "space": self.space.name,
            "preset": paths["preset"].name,
            "how_to_load": [*self.synth.how_to_load, self.how_to_play(chosen)],
            "recorded_key": self.key,
            "cents": cents if cents is None else round(cents, 1),
            "note": chosen.note._asdict(),
            "patch": chosen.patch,
        }
        paths["report"].write_text(json.dumps(report, indent=1) + "\n")
        if single:
            self.synth.save_preset(paths["preset"], chosen.patch, name)
        else:
            same_key = [c.patch for c in self.candidates if c.note.pitch == chosen.note.pitch]
            patches = {tuple(patch.items()): patch for patch in (chosen.patch, *same_key)}
            voices = [(name, patch) for patch in patches.values()][: self.synth.bank_size]
            self.synth.save_bank(paths["preset"], voices)  # which numbers their names
        write_sound(paths["target"], self.target)
        write_sound(paths["match"], self.audio(chosen))
        return paths


def output_paths(
    folder: str | Path, name: str, synth: Synth, recording: str | Path | None = None
) -> dict[str, Path]:
    """Where `Match.save` writes, tried before a search begins: makes the folder, and looks at what is there.

    Args:
        name: of the preset; what a file name cannot hold becomes `_` there.
        recording: the sound file that is matched, if it comes from one; it is never overwritten.

    Returns:
        The paths by kind: `preset`, `target`, `match`, `report` and `picture`.

    Raises:
        FileExistsError: a file would be overwritten that is the recording, or that no earlier match left there.
        OSError: nothing can be written there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; choose another folder", str(folder)) from None
    stem = re.sub(r"[^\w.-]+", "_", name)[:60].strip("._-") or "match"
    names = {
        "preset": f"{stem}{synth.preset_suffix}",
        "target": "target.wav",
        "match": "match.wav",
        "report": "match.json",
        "picture": "match.png",
    }
    paths = {kind: folder / file for kind, file in names.items()}
    own = Path(recording) if recording is not None and Path(recording).exists() else None
    for path in (path for path in paths.values() if path.exists()):
        if not paths["report"].exists() or (own and path.samefile(own)):
            message = "a match would overwrite this file, which is not its own; choose another folder"
            raise FileExistsError(errno.EEXIST, message, str(path))
    return paths


def at_key(synth: Synth, patch: Patch, note: Note, key: int | None) -> tuple[Patch, Note]:
    """The same sound played with `key`; octaves from it where the patch doesn't reach; else, or for None, as it is."""
    for octaves in (0, 1, -1, 2, -2) if key is not None else ():
        pitch = key + 12 * octaves
        moved = synth.transpose(patch, note.pitch - pitch) if 0 <= pitch <= 127 else None
        if moved is not None:
            return moved, note._replace(pitch=pitch)
    return patch, note


def gain(target: np.ndarray, render: np.ndarray) -> float:
    """The factor that brings `render` to the RMS of `target`; 1 if either is silent."""
    target_rms, render_rms = (
        float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (target, render)
    )
    return target_rms / render_rms if target_rms > 0 and render_rms > 0 else 1.0


def _named(key: int) -> str:
    return f"{librosa.midi_to_note(key, unicode=False)} ({key})"


def _short(value: float | str) -> float | str:
    return float(f"{value:.4g}") if isinstance(value, float) else value
