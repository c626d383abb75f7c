"""Clip `i` of a dataset: drawn from `(space, seed, i)` alone, played, and drawn again until it is loud enough.

Clips may come in families: one drawn from the prior, the next ones edits of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from synthnb.data.shards import DatasetError
from synthnb.sound import is_as_loud_as
from synthnb.space import Note, ParameterSpace, Patch
from synthnb.space.edits import edit
from synthnb.synths import Synth, SynthCrash

ATTEMPTS = 1000  # patches drawn for one clip before the space is declared silent
CRASHES = 2  # of a synth at one patch, before that is skipped
KILLS = 20  # of a synth at one patch, from outside, before it is no accident

Skipped = list[tuple[int, int, str]]  # clip, attempt, what happened


class Clip(NamedTuple):
    """A clip of a dataset: its number, which draw was loud enough, what it plays, audio `(channels, samples)`."""

    index: int
    attempt: int
    patch: Patch
    note: Note
    audio: np.ndarray


def draw(space: ParameterSpace, seed: int, family: int, attempt: int) -> tuple[Patch, Note]:
    """An attempt at the first clip of a family."""
    return space.sample(np.random.default_rng([seed, family, attempt]))


def sample_clip(
    space: ParameterSpace, synth: Synth, seed: int, index: int, loudness_floor: float, edits: int = 0
) -> tuple[Patch, Note, np.ndarray]:
    """Clip `index`: draw patches until one is loud enough. Returns patch, note and audio `(channels, samples)`."""
    return next(sample_clips(space, synth, seed, [index], loudness_floor, edits))[2:]


def sample_clips(
    space: ParameterSpace,
    synth: Synth,
    seed: int,
    indices: Sequence[int],
    loudness_floor: float,
    edits: int = 0,
    skipped: Skipped | None = None,
) -> Iterator[Clip]:
    """`sample_clip` of many; edits, and those of which a patch was refused, come later.

    Patches that the synth can't play without crashing are refused like silent ones, and added to `skipped`.
    """
    skipped = [] if skipped is None else skipped
    family = 1 + edits
    firsts: dict[int, tuple[Patch, Note]] = {}

    def first(index: int, attempt: int) -> tuple[Patch, Note]:
        return draw(space, seed, index // family, attempt)

    def change(index: int, attempt: int) -> tuple[Patch, Note]:
        rng = np.random.default_rng([seed, index // family, attempt, index % family])
        return edit(space, *firsts[index // family], rng)

    firsts_of = sorted({i - i % family for i in indices})
    for clip in _play(space, synth, first, firsts_of, loudness_floor, skipped):
        if edits:
            firsts[clip.index // family] = clip.patch, clip.note
        if clip.index in indices:
            yield clip
    yield from _play(space, synth, change, [i for i in indices if i % family], loudness_floor, skipped)


def _play(
    space: ParameterSpace,
    synth: Synth,
    draw: Callable[[int, int], tuple[Patch, Note]],
    indices: Sequence[int],
    loudness_floor: float,
    skipped: Skipped,
) -> Iterator[Clip]:
    """Draw a patch for every index, again and again until it is loud enough."""
    for attempt in range(ATTEMPTS):
        # All are drawn before any is played: the same work again and again finds its code and data in the cache.
        drawn = [(index, *draw(index, attempt)) for index in indices]
        indices = []
        for index, patch, note in drawn:
            if synth.ceiling(patch, note) < loudness_floor:
                indices.append(index)
                continue
            try:
                audio = render(synth, patch, note, space.seconds)
            except SynthCrash as error:
                what = str(error).partition(": ")[0]  # its last words may name paths
                skipped.append((index, attempt, what))
                indices.append(index)
                continue
            if is_as_loud_as(audio, loudness_floor):
                yield Clip(index, attempt, patch, note, audio)
            else:
                indices.append(index)
        if not indices:
            return
    raise DatasetError(
        f"clip {indices[0]}: {ATTEMPTS} patches of space '{space.name}' in a row were below {loudness_floor} LUFS; "
        "widen its prior or lower the loudness floor"
    )


def render(synth: Synth, patch: Patch, note: Note, seconds: float) -> np.ndarray:
    """`synth.render` of the channels that differ, again in a fresh process if that crashed.

    Raises `SynthCrash` if it is the patch.
    """
    crashes = kills = 0
    while True:
        try:
            return synth.render(patch, note, seconds)[: synth.channels]
        except SynthCrash as error:
            kills, crashes = kills + error.killed, crashes + (not error.killed)
            if crashes == CRASHES or kills == KILLS:
                raise
