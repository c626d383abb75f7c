"""Sounds to match, of three kinds: clips that no model was trained on, presets that people made, recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthnb.data.draw import sample_clips
from synthnb.data.shards import open_split, read_space
from synthnb.sound import prepare, read_sound
from synthnb.space import LOUDNESS_FLOOR, ParameterSpace
from synthnb.synths import open_synth


@dataclass(frozen=True)
class Target:
    """A sound to match: float32 `(channels, samples)` of the space's length.

    `recorded`: not made by the synth, so its level means nothing: renders are brought to it before being measured.
    """

    name: str
    audio: np.ndarray
    recorded: bool = False


def held_out_clips(folder: str | Path, count: int, space: str | Path | None = None) -> list[Target]:
    """The first `count` test clips of a dataset that were drawn from the prior, rendered from their parameters.

    `space` is the name or path of its space, for a dataset whose attributes do not say it.
    """
    with open_split(Path(folder) / "test.h5") as file:
        space = read_space(file, space)
        family = 1 + int(file.attrs.get("edits", 0))
        vectors = file["param_array"][::family][:count]
    synth = open_synth(space)
    return [
        Target(f"clip {i}", synth.render(*space.decode(vector), space.seconds)[: synth.channels])
        for i, vector in enumerate(vectors)
    ]


def presets(paths: Sequence[Path], space: ParameterSpace, count: int, seed: int = 0) -> list[Target]:
    """`count` presets from files that the synth reads, each once, played with notes drawn from the space's prior."""
    synth = open_synth(space)
    voices = [voice for path in paths for voice in synth.load_bank(path)]
    unique = list({tuple(patch.items()): (name, patch) for name, patch in voices}.values())
    rng = np.random.default_rng(seed)
    targets = []
    for i in rng.permutation(len(unique))[:count]:
        name, patch = unique[i]
        _, note = space.sample(rng)
        audio = synth.render(patch, note, space.seconds)[: synth.channels]
        targets.append(Target(f"preset {i} {name}", audio))
    return targets


def recorded(paths: Sequence[str | Path], space: ParameterSpace) -> list[Target]:
    """Sound files, read and cut as for a match."""
    return [
        Target(Path(path).stem, prepare(read_sound(path), space.seconds), recorded=True) for path in paths
    ]


def unseen_clips(space: ParameterSpace, count: int, seed: int) -> list[Target]:
    """`count` audible clips drawn from the prior with a seed that no training set had."""
    synth = open_synth(space)
    clips = sample_clips(space, synth, seed, range(count), LOUDNESS_FLOOR)
    return [Target(f"clip {clip.index}", clip.audio) for clip in sorted(clips, key=lambda clip: clip.index)]
