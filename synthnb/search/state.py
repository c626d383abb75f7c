"""What a search knows while it goes on, and what its moves may ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch

from synthnb.features import log_mel
from synthnb.models.flow import FlowModel
from synthnb.search.candidate import Candidate, Press
from synthnb.search.distance import HeardDistance
from synthnb.search.genes import Genes
from synthnb.search.play import Player
from synthnb.search.population import Population
from synthnb.space import SpaceError


@dataclass
class Recording:
    """One recording of the target.

    Attributes:
        audio: float32 `(channels, samples)`, as it is compared; a very quiet one is raised.
        distance: to it.
        press: how patches are played for it.
    """

    audio: np.ndarray
    distance: HeardDistance
    press: Press


@dataclass
class State:
    """A search: recordings of one sound, the population, and the tools that moves use.

    Attributes:
        recordings: one, or several of other notes of the same sound.
        guidance: a scale that the flow's moves use; None lets each choose.
        renders: played so far.
        looked_up: how many clips of the library were asked for.
    """

    model: FlowModel
    player: Player
    recordings: list[Recording]
    guidance: float | None = None
    renders: int = 0
    looked_up: int = 0
    genes: Genes = field(init=False)
    population: Population = field(init=False)

    def __post_init__(self):
        self.space, self.synth = self.model.space, self.player.synth
        self.genes, self.population = Genes(self.space), Population(self.space)
        self.mel = log_mel(torch.from_numpy(self.recordings[0].audio))
        self.nothing = np.empty((0, self.space.width), np.float32)
        self._mels: WeakKeyDictionary[Candidate, torch.Tensor] = WeakKeyDictionary()
        self._tuned: WeakSet[Candidate] = WeakSet()

    @property
    def pitch(self):
        """Of the first recording; None if it is unpitched."""
        return self.recordings[0].distance.pitch

    def mel_of(self, candidate: Candidate) -> torch.Tensor:
        """The `log_mel` of a candidate's sound."""
        if candidate not in self._mels:
            self._mels[candidate] = log_mel(torch.from_numpy(candidate.audio))
        return self._mels[candidate]

    def play(self, vectors: np.ndarray, origin: str) -> list[Candidate]:
        """Play vectors `(n, width)` and rank them: those that joined the population."""
        found = self.rank(vectors, origin, self.population.worst)
        return [candidate for candidate in found if self.population.add(candidate)]

    def rank(self, vectors: np.ndarray, origin: str, bound: float = np.inf) -> list[Candidate]:
        """Play vectors `(n, width)`: those whose distance is under the bound, in their order."""
        total, share = np.zeros(len(vectors)), 1 / len(self.recordings)
        for recording in self.recordings:
            left = np.flatnonzero(np.isfinite(total))
            if len(left):
                most = (bound - total[left].min()) / share
                total[left] += share * self.player.score(
                    recording.distance, vectors[left], recording.press, most
                )
                self.renders += len(left)
        return [self.candidate(v, float(x), origin) for v, x in zip(vectors, total) if x < bound]

    def candidate(self, vector: np.ndarray, distance: float, origin: str) -> Candidate:
        """What was played, and the key to press for it."""
        press = self.recordings[0].press
        audio = self.player.render(vector, press)  # which remembers it
        patch, note = press(self.synth, *self.space.decode(vector), self.space.seconds)
        return Candidate(vector, patch, note, audio, distance, origin)

    def cents(self, candidate: Candidate) -> float | None:
        """How much higher than the target a candidate sounds; None if either is unpitched."""
        return self.recordings[0].distance.cents(candidate.audio)

    def off_key(self, candidate: Candidate) -> int:
        """How many semitones a candidate is too high, the first time it is asked; afterwards 0."""
        if candidate in self._tuned:
            return 0
        self._tuned.add(candidate)
        return round((self.cents(candidate) or 0) / 100)

    def transpose(self, vector: np.ndarray, semitones: int) -> np.ndarray | None:
        """A vector that sounds so much higher, by its note as far as that goes; None if the patch doesn't reach."""
        patch, note = self.space.decode(vector)
        pitch = int(np.clip(note.pitch + semitones, self.space["pitch"].low, self.space["pitch"].high))
        rest = note.pitch + semitones - pitch
        patch = self.synth.transpose(patch, rest) if rest else patch
        try:
            return patch and self.space.encode(patch, note._replace(pitch=pitch))
        except SpaceError:
            return None

    def tuning(self, vector: np.ndarray) -> set[str]:
        """Names of what transposes a patch: the note's pitch, and what the synth changes for a semitone."""
        patch, _ = self.space.decode(vector)
        moved = self.synth.transpose(patch, 1) or self.synth.transpose(patch, -1) or patch
        return {"pitch", *(name for name in patch if moved[name] != patch[name])}

    def keep_key(self) -> None:
        """Once the best is in tune, what transposes it stays as it is, in all that is mutated or crossed."""
        if self.pitch and self.genes.free.all():
            cents = self.cents(best := self.population[0])
            if cents is not None and abs(cents) < 50:
                self.genes.hold(self.tuning(best.vector))
