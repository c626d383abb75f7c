"""A synth's parameters as data: what there is, what is likely, and how a patch becomes a vector.

A `ParameterSpace` is read from a YAML file (`dexed.yaml`, say). It draws patches from a prior, encodes a patch and a
note into one float vector, decodes it again, and says which modules of the synth are interchangeable.

Three coordinate systems, from what a person reads to what the model sees:

- *patch*: `{"op1_coarse": "2", "feedback": 5, ...}`, natural values;
- *vector*: float32 `(width,)` in [0, 1]; a scalar parameter is linear in its range, a categorical one is a one-hot
  block, the note (pitch, start, end) comes last; this is what datasets store;
- *quantiles*: the same layout, but each scalar is its position in the prior's cumulative distribution. A value that
  half of all patches share spans half of the axis, so it is easy to hit; under a uniform prior nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from synthnb.space.faults import space_faults
from synthnb.space.parameter import NOTE_FIELDS, Note, Parameter, Patch, SpaceError
from synthnb.space.tables import Tables
from synthnb.space.text import KEYS, OPTIONAL, from_row, from_yaml, to_row, to_yaml

SPACES = Path(__file__).parent


@dataclass(frozen=True)
class ParameterSpace:
    """All parameters of a synth, the note, and the prior over both. Raises `SpaceError` on what makes no sense.

    Args:
        name: of the space; the file name without `.yaml`.
        synth: which one plays it; see `open_synth`.
        seconds: length of a clip.
        parameters: the synth's, in vector order.
        note_fields: the note's `pitch`, `start`, `end` as parameters (module `note`).
        velocity: MIDI velocity of every note.
        interchangeable: modules that can be swapped without changing the sound; see `interchangeable_in`.
        plugin: name of the plugin that the synth `vst3` hosts.
        base: what the synth is set to before a patch, in its own terms: numbers, or mappings of numbers.
    """

    name: str
    synth: str
    seconds: float
    parameters: tuple[Parameter, ...]
    note_fields: tuple[Parameter, ...]
    velocity: int
    interchangeable: dict = field(default_factory=dict)
    plugin: str = ""
    base: dict = field(default_factory=dict)

    def __post_init__(self):
        if fault := next(space_faults(self), None):
            raise SpaceError(fault)

    @classmethod
    def load(cls, name_or_path: str | Path) -> ParameterSpace:
        """Read a space by name (`"dexed"`) or by the path of a YAML file. Raises `SpaceError`."""
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = SPACES / f"{name_or_path}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in SPACES.glob("*.yaml")))
            raise SpaceError(f"no space '{name_or_path}'; known: {known}; or pass the path of a .yaml file")
        return cls.parse(path.read_bytes(), path)

    @classmethod
    def parse(cls, text: str | bytes, source: str | Path = "") -> ParameterSpace:
        """Build a space from its YAML text, which came from `source`.

        Raises `SpaceError` naming the source and the parameter that is wrong.
        """
        try:
            text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
            space = cls.from_dict(from_yaml(text))
        except (SpaceError, UnicodeDecodeError) as error:
            where = f"{source}: " if source else ""
            raise SpaceError(
                f"{where}not a space: {error}; see {SPACES.name}/dexed.yaml for the layout"
            ) from None
        space.__dict__["text"] = text  # with its comments
        return space

    @classmethod
    def from_dict(cls, data: dict) -> ParameterSpace:
        """Build a space of what its YAML holds. Raises `SpaceError` naming the parameter that is wrong."""
        note = data["note"]
        return cls(
            name=data["name"],
            synth=data["synth"],
            seconds=data["seconds"],
            parameters=tuple(from_row(name, row) for name, row in data["parameters"].items()),
            note_fields=tuple(from_row(name, note[name], "note") for name in NOTE_FIELDS),
            velocity=note["velocity"],
            **{key: data[key] for key in OPTIONAL if data.get(key)},
        )

    @functools.cached_property
    def text(self) -> str:
        """Its YAML, as datasets and checkpoints carry it: what it was read from, else written from its fields."""
        note = {p.name: to_row(p) for p in self.note_fields} | {"velocity": self.velocity}
        fields = vars(self) | {"note": note, "parameters": {p.name: to_row(p) for p in self.parameters}}
        return to_yaml({key: fields[key] for key in KEYS if fields[key] or key not in OPTIONAL})

    @functools.cached_property
    def columns(self) -> dict[str, slice]:
        """Where each parameter, and the note's `pitch`, `start`, `end`, lies in a vector."""
        ends = np.cumsum([p.width for p in self])
        return {p.name: slice(int(end) - p.width, int(end)) for p, end in zip(self, ends)}

    @functools.cached_property
    def modules(self) -> dict[str, np.ndarray]:
        """Module name to the vector columns of its parameters, in order of appearance; `note` is the last."""
        columns: dict[str, list[int]] = {}
        for p in self:
            at = self.columns[p.name]
            columns.setdefault(p.module, []).extend(range(at.start, at.stop))
        return {name: np.array(index) for name, index in columns.items()}

    @functools.cached_property
    def width(self) -> int:
        """Length of a vector."""
        return sum(p.width for p in self)

    def __iter__(self) -> Iterator[Parameter]:
        yield from self.parameters
        yield from self.note_fields

    def __getitem__(self, name: str) -> Parameter:
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Parameter]:
        return {p.name: p for p in self}

    @functools.cached_property
    def _tables(self) -> Tables:
        return Tables(self)

    @property
    def default_patch(self) -> Patch:
        """The synth's initial patch."""
        return {p.name: p.default for p in self.parameters}

    def sample(self, rng: np.random.Generator) -> tuple[Patch, Note]:
        """Draw one patch and one note from the prior; one uniform number per parameter, in vector order."""
        uniform = rng.random(len(self.parameters) + len(self.note_fields)).tolist()
        patch = {p.name: p.at_quantile(u) for p, u in zip(self, uniform)}
        return patch, self.note({name: patch.pop(name) for name in NOTE_FIELDS})

    def note(self, values: dict) -> Note:
        """The note of `pitch`, `start` and `end`, which come in order: their ranges may overlap."""
        start, end = sorted((float(values["start"]), float(values["end"])))
        return Note(int(values["pitch"]), self.velocity, start, end)

    def check(self, patch: Patch) -> None:
        """Raise `SpaceError` unless `patch` has exactly this space's parameters, each with an allowed value."""
        self._check_names(patch)
        for p in self.parameters:
            p.to_unit(patch[p.name])

    def _check_names(self, patch: Patch) -> None:
        missing = [p.name for p in self.parameters if p.name not in patch]
        unknown = [name for name in patch if name not in self._by_name or name in NOTE_FIELDS]
        if missing or unknown:
            raise SpaceError(
                f"not a patch of space '{self.name}': missing {missing[:5]}, unknown {unknown[:5]}"
            )

    def encode(self, patch: Patch, note: Note) -> np.ndarray:
        """Patch and note to a vector, float32 `(width,)` in [0, 1]. Raises `SpaceError` on values out of range."""
        self._check_names(patch)
        vector = np.zeros(self.width, dtype=np.float32)
        values = {**patch, **note._asdict()}
        if not self._tables.encode(values, vector):
            for p in self:
                p.to_unit(values[p.name])  # raises at the first that is wrong
        return vector

    def decode(self, vector: np.ndarray) -> tuple[Patch, Note]:
        """A vector `(width,)` to the nearest patch and note: clip, round, arg-max. Raises `SpaceError`."""
        vector = np.asarray(vector, dtype=np.float64)
        if vector.shape != (self.width,):
            raise SpaceError(
                f"space '{self.name}' has vectors of {self.width} numbers, got shape {vector.shape}"
            )
        if not np.isfinite(vector).all():
            raise SpaceError("the vector holds NaN or infinite numbers")
        patch = self._tables.decode(vector)
        return patch, self.note({name: patch.pop(name) for name in NOTE_FIELDS})

    def to_quantiles(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors `(..., width)` to quantile coordinates of the same shape; one-hot blocks stay as they are."""
        return self._tables.to_quantiles(vectors)

    def from_quantiles(self, quantiles: np.ndarray) -> np.ndarray:
        """The inverse of `to_quantiles`; values outside [0, 1] are clipped."""
        return self._tables.from_quantiles(quantiles)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of quantile coordinates under the prior, each float32 `(width,)`."""
        even = (np.arange(1000) + 0.5) / 1000
        mean, variance = np.zeros(self.width, np.float32), np.zeros(self.width, np.float32)
        for p in self:
            if p.kind == "categorical":
                mean[self.columns[p.name]] = p.probabilities
                variance[self.columns[p.name]] = p.probabilities * (1 - p.probabilities)
            else:
                quantiles = p.to_quantile(p.from_quantile(even))
                mean[self.columns[p.name]], variance[self.columns[p.name]] = quantiles.mean(), quantiles.var()
        return mean, variance

    @property
    def given(self) -> list[str]:
        """The parameters whose values say which modules are interchangeable."""
        names = self.interchangeable.get("given", [])
        return [names] if isinstance(names, str) else names

    def interchangeable_in(self, patch: Patch) -> list[list[tuple[str, ...]]]:
        """Sets of module tuples that can trade places in this patch without changing its sound.

        `[[("op1", "op2"), ("op3", "op4")]]` says that operators 1 and 2, as a pair, may swap all their settings
        with 3 and 4. In the file: `swaps`, keyed by the value of the parameter named in `given` (of several, by
        their values, with commas between); `always` holds what needs no condition.
        """
        values = ", ".join(str(patch[name]) for name in self.given)
        sets = self.interchangeable.get("always", []) + self.interchangeable.get("swaps", {}).get(values, [])
        return [[tuple(block) for block in blocks] for blocks in sets]

    def swap(self, patch: Patch, first: tuple[str, ...], second: tuple[str, ...]) -> Patch:
        """The patch with the settings of two module tuples exchanged (`("op1",)`, `("op3",)`)."""
        target = dict(zip(first + second, second + first))
        swapped = dict(patch)
        for p in self.parameters:
            if p.module in target:
                swapped[p.name_in(target[p.module])] = patch[p.name]
        return swapped

    def describe(self) -> pd.DataFrame:
        """One row per parameter: kind, range or choices, default, module, and what the prior makes of it."""
        return pd.DataFrame(
            [_row(p) for p in self], columns=["name", "module", "kind", "range", "default", "prior"]
        )


def _row(p: Parameter) -> tuple:
    if p.kind == "categorical":
        span = (
            ", ".join(p.choices) if len(p.choices) <= 8 else f"{p.choices[0]} … {p.choices[-1]} ({p.states})"
        )
    else:
        span = f"{p.low:g} – {p.high:g}"
    if p.states:
        top = int(p.probabilities.argmax())
        value = p.choices[top] if p.kind == "categorical" else f"{p.low + top:g}"
        prior = f"{value} in {p.probabilities[top]:.0%}"
    else:
        prior = next(iter(p.prior)) if p.prior else "uniform"
    return p.name, p.module, p.kind, span, p.default, prior
