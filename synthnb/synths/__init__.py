"""Synths: patch and note in, audio out. `open_synth(name)` gives the one that a space names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a plugin's process imports this, and pandas takes a second
    import numpy as np

    from synthnb.space import Note, ParameterSpace, Patch


class SynthError(RuntimeError):
    """A synth that cannot do what was asked, that crashed or that hangs; the message says which."""


class SynthCrash(SynthError):
    """A synth whose process ended in the middle of a call, or was stopped as it hung.

    `killed`: by SIGKILL, which comes from outside (a person, a machine without memory), so the patch isn't to blame.
    """

    def __init__(self, message: str, killed: bool = False):
        super().__init__(message)
        self.killed = killed


class SynthNotFound(SynthError):
    """The synth is not known or not installed; the message says how to get it."""


class PresetError(ValueError):
    """A preset file that cannot be read or a patch that cannot be written; the message says why."""


class Synth(Protocol):
    """What every synth can do.

    Attributes:
        channels: how many of the two rendered channels differ (1 for a mono synth); datasets store that many.
        preset_suffix: of the preset files it writes, with the dot.
        bank_size: how many presets a file of `save_bank` holds.
        how_to_load: what a person does to play such a file, in two short steps.
    """

    channels: int
    preset_suffix: str
    bank_size: int
    how_to_load: tuple[str, str]

    def render(self, patch: Patch, note: Note, seconds: float) -> np.ndarray:
        """Play one note: float32 `(2, round(seconds * 44100))`. The same arguments give the same samples."""
        ...

    def ceiling(self, patch: Patch, note: Note) -> float:
        """LUFS that this note should not exceed, by what is known without playing it; infinite if nothing is."""
        ...

    def engine_seconds(self, patch: Patch, note: Note, seconds: float) -> float:
        """Seconds that the engine itself takes for this note: what no program around it can be faster than."""
        ...

    def transpose(self, patch: Patch, semitones: int) -> Patch | None:
        """The same patch, sounding so many semitones higher; None if its parameters don't reach or aren't known."""
        ...

    def save_preset(self, path: str | Path, patch: Patch, name: str) -> Path:
        """Write one patch as a preset file that the synth itself loads. Returns its path."""
        ...

    def save_bank(self, path: str | Path, voices: list[tuple[str, Patch]]) -> Path:
        """Write 1 to `bank_size` named patches as the file that people load, the first one first. Returns its path."""
        ...

    def load_preset(self, path: str | Path) -> Patch:
        """Read a preset file. Raises `PresetError`."""
        ...

    def load_bank(self, path: str | Path) -> list[tuple[str, Patch]]:
        """Read all presets of a file, each with its name. Raises `PresetError`."""
        ...


def open_synth(space: ParameterSpace) -> Synth:
    """Open the synth that plays a space. Raises `SynthNotFound`."""
    if space.synth == "dexed":
        from synthnb.synths.dexed import Dexed

        return Dexed()
    if space.synth == "surge_xt":
        from synthnb.synths.surge.plugin import SurgeXT

        return SurgeXT(space)
    if space.synth == "vst3":
        from synthnb.synths.vst3 import VST3

        return VST3(space)
    raise SynthNotFound(f"no synth '{space.synth}'; known: dexed, surge_xt, vst3")


@functools.lru_cache(maxsize=2)
def open_space(text: str) -> tuple[ParameterSpace, Synth]:
    """The space of that YAML text and its synth; a worker process keeps them open from one task to the next."""
    from synthnb.space import ParameterSpace

    space = ParameterSpace.parse(text)
    return space, open_synth(space)
