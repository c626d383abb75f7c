"""What a search found, so far: candidates, the best first, how to play them, and the files that keep it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import librosa
import numpy as np
import pandas as pd

from synthnb.features import coarse
from synthnb.metrics import all_metrics
from synthnb.pitch import Pitch
from synthnb.search.candidate import Candidate
from synthnb.search.credit import Credit
from synthnb.search.files import output_paths
from synthnb.search.reach import reach
from synthnb.search.state import State
from synthnb.search.words import words
from synthnb.sound import write_sound
from synthnb.space import ParameterSpace
from synthnb.synths import Synth

HEARD = 3  # cents; less is nothing to listeners, nor to what finds pitches

APART = 1.0  # dB between spectrograms, on average; less is the same sound
WORTH = 10  # dB of difference that make up for 1 of distance


@dataclass
class Match:
    """A search and what it has found: it can be looked at, gone on with, saved and loaded.

    Attributes:
        state: its recordings, and the population.
        seed: of all that is drawn.
        history: `(seconds, renders, distance of the best)` after every step.
        credit: what its moves have earned; None before they competed.
    """

    state: State = field(repr=False)
    seed: int = 0
    history: list[tuple[float, int, float]] = field(default_factory=list, repr=False)
    credit: Credit | None = field(default=None, repr=False)

    @property
    def target(self) -> np.ndarray:
        """float32 `(channels, samples)`, the first recording as it was compared; a very quiet one is raised."""
        return self.state.recordings[0].audio

    @property
    def space(self) -> ParameterSpace:
        return self.state.space

    @property
    def synth(self) -> Synth:
        return self.state.synth

    @property
    def pitch(self) -> Pitch | None:
        """Of the target; None if it is unpitched."""
        return self.state.pitch

    @property
    def seconds(self) -> float:
        """How long it was searched."""
        return self.history[-1][0] if self.history else 0.0

    @property
    def candidates(self) -> list[Candidate]:
        """The nearest, the best first."""
        return list(self.state.population)

    @property
    def key(self) -> int | None:
        """The MIDI key that was recorded, so the key to press; None if the recording is unpitched."""
        return self.pitch and self.pitch.key

    @property
    def best(self) -> Candidate:
        """The candidate nearest to the target, in tune if it has a pitch."""
        return self.candidates[0]

    def cents(self, candidate: Candidate | None = None) -> float | None:
        """How much higher than the target a candidate (default: the best) sounds; None if either is unpitched."""
        return self.state.cents(candidate or self.best)

    def different(self, count: int = 6) -> list[Candidate]:
        """The best, and others that are near too and sound most unlike those before them.

        A candidate's place is decided by how far in dB its spectrogram is from the nearest of those that were chosen,
        less what it is farther from the target. What sounds like one of them is left out, so they may be fewer.
        """
        near = {id(c): c for c in [*self.state.population, *self.state.population.elites.values()]}
        left = sorted(near.values(), key=lambda c: c.distance)
        sounds = {id(c): coarse(self.state.mel_of(c)[None]) for c in left}
        sounds = {key: mel - mel.max() for key, mel in sounds.items()}
        chosen, apart = [left.pop(0)], dict.fromkeys(sounds, np.inf)
        while left and len(chosen) < count:
            for c in left:
                gap = (sounds[id(c)] - sounds[id(chosen[-1])]).clamp(-60, 60).abs().mean()
                apart[id(c)] = min(apart[id(c)], float(gap))
            left = [c for c in left if apart[id(c)] >= APART]
            if left:
                chosen.append(
                    max(left, key=lambda c: apart[id(c)] - WORTH * (c.distance - self.best.distance))
                )
                left.remove(chosen[-1])
        return chosen

    def say(self, candidate: Candidate | None = None) -> str:
        """How close a candidate (default: the best) is, in words: "close, nearer than 70 % of matches; darker"."""
        chosen = candidate or self.best
        known, different = reach(self.space.name, chosen.distance), words(self.target, chosen.audio)
        parts = [f"{known[0]}, nearer than {known[1]:.0%} of matches"] if known else []
        return "; ".join([*parts, ", ".join(different) or "no difference that has a word"])

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

    def table(self, count: int = 8, candidates: list[Candidate] | None = None) -> pd.DataFrame:
        """The first `count` candidates, or those given: origin, distance, key to press, cents, metrics, a row each."""
        rows = [
            {
                "origin": c.origin,
                "distance": c.distance,
                "key": c.note.pitch,
                "cents": self.cents(c),
                **self.metrics(c),
            }
            for c in (candidates or self.candidates)[:count]
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
            "said": self.say(chosen),
            "distances": {key: round(value, 4) for key, value in self.metrics(chosen).items()},
            "first": round(self.history[0][2], 4),
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
        self.keep(paths["search"])
        write_sound(paths["target"], self.target)
        write_sound(paths["match"], self.audio(chosen))
        return paths

    def keep(self, path: str | Path) -> Path:
        """Write what `Matcher.load` needs to go on. Returns the path."""
        state, path = self.state, Path(path)
        kept = [
            *state.population,
            *(c for c in state.population.elites.values() if c not in state.population),
        ]
        about = {
            "space": self.space.text,
            "seed": self.seed,
            "guidance": state.guidance,
            "renders": state.renders,
            "looked_up": state.looked_up,
            "velocities": [r.press.velocity for r in state.recordings],
            "origins": [c.origin for c in kept],
        }
        np.savez_compressed(
            path,
            about=json.dumps(about),
            recordings=np.stack([r.audio for r in state.recordings]),
            vectors=np.stack([c.vector for c in kept]),
            distances=[c.distance for c in kept],
            history=np.array(self.history),
        )
        return path


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
