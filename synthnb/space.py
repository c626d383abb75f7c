"""A synth's parameters as data: what there is, what is likely, and how a patch becomes a vector.

A `ParameterSpace` is read from a YAML file (see `spaces/`). It draws patches from a prior, encodes a patch and a
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
import hashlib
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy import stats

SPACES = Path(__file__).parent / "spaces"
NOTE_FIELDS = (
    "pitch",
    "start",
    "end",
)  # the note's part of a vector, in this order; velocity is fixed by the space
STEP = 1e-9  # in units and quantiles: what keeps a cumulative prior invertible where it jumps or is flat

Patch = dict[str, float | str]


class Note(NamedTuple):
    """One key press: MIDI `pitch` and `velocity`, `start` and `end` in seconds from the beginning of the clip."""

    pitch: int
    velocity: int
    start: float
    end: float


class SpaceError(ValueError):
    """A space file, patch or vector that does not fit; the message names the parameter and what is allowed."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: its kind, its range or choices, and how its values are distributed.

    Args:
        kind: `continuous`, `integer` (both `low` to `high`) or `categorical` (`choices`).
        default: the natural value of the synth's initial patch.
        module: the part of the synth it belongs to (`op1`, `lfo`).
        prior: `None` (uniform) or one of
            `{"histogram": [w, ...]}`, equal bins over the range, one per value for an integer, one per choice;
            `{"beta": [a, b]}` over the range. Either may add `"default_share": p`, the probability of the default,
            from 0 to 1.
        key: what the synth itself calls it, where that is not its name.
        codes: of each choice, the number that the synth takes for it, where it does not take the text.
    """

    name: str
    kind: str
    default: float | str
    module: str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()
    prior: dict | None = None
    key: str = ""
    codes: tuple[float, ...] = ()

    def __post_init__(self):
        where = f"parameter '{self.name}'"
        if self.kind not in ("continuous", "integer", "categorical"):
            raise SpaceError(f"{where}: kind '{self.kind}' is not continuous, integer or categorical")
        if self.kind == "categorical":
            if len(set(self.choices)) < 2 or len(set(self.choices)) != len(self.choices):
                raise SpaceError(f"{where}: needs at least two different choices, has {list(self.choices)}")
        elif not self.low < self.high:
            raise SpaceError(f"{where}: low {self.low} is not below high {self.high}")
        unknown = set(self.prior or {}) - {"histogram", "beta", "default_share"}
        if unknown:
            raise SpaceError(f"{where}: unknown prior {sorted(unknown)}; use histogram, beta, default_share")
        weights = (self.prior or {}).get("histogram")
        if weights is not None:
            if self.states and len(weights) != self.states:
                raise SpaceError(f"{where}: {len(weights)} histogram weights for {self.states} values")
            if min(weights) < 0 or sum(weights) <= 0:
                raise SpaceError(f"{where}: histogram weights must be non-negative and not all zero")
        share = (self.prior or {}).get("default_share", 0.0)
        if not 0 <= share <= 1:
            raise SpaceError(f"{where}: default_share is {share}; a probability from 0 to 1 is needed")
        if self.codes and len(set(self.codes)) != len(self.choices):
            raise SpaceError(
                f"{where}: {len(set(self.codes))} different codes for {len(self.choices)} choices"
            )
        self.to_unit(self.default)  # a default outside the range stops here

    @functools.cached_property
    def states(self) -> int:
        """How many values it can take; 0 for a continuous parameter."""
        if self.kind == "categorical":
            return len(self.choices)
        return round(self.high - self.low) + 1 if self.kind == "integer" else 0

    @functools.cached_property
    def width(self) -> int:
        """How many numbers of a vector it takes."""
        return self.states if self.kind == "categorical" else 1

    def to_unit(self, value: float | str) -> float:
        """Natural value to [0, 1] (scalar) or to the choice's index (categorical). Raises `SpaceError`."""
        if self.kind == "categorical":
            if str(value) not in self.choices:
                raise SpaceError(f"'{self.name}' is {value!r}; allowed: {', '.join(self.choices)}")
            return self.choices.index(str(value))
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise SpaceError(
                f"'{self.name}' is {value!r}; a number from {self.low:g} to {self.high:g} is needed"
            ) from None
        if not self.low <= number <= self.high:
            raise SpaceError(f"'{self.name}' is {number:g}; allowed: {self.low:g} to {self.high:g}")
        if self.kind == "integer" and number != round(number):
            raise SpaceError(f"'{self.name}' is {number:g}; a whole number is needed")
        return (number - self.low) / (self.high - self.low)

    def to_code(self, value: float | str) -> float | str:
        """Natural value to what the synth takes: a choice's code, else the value. Raises `SpaceError`."""
        unit = self.to_unit(value)
        return self.codes[int(unit)] if self.codes else value

    def from_code(self, code: float) -> float | str:
        """The nearest natural value to what the synth holds: the choice with the nearest code, else clipped."""
        if self.codes:
            return self.choices[int(np.abs(np.subtract(self.codes, code)).argmin())]
        value = min(max(code, self.low), self.high)
        return int(np.floor(value + 0.5)) if self.kind == "integer" else float(value)

    def from_unit(self, unit: float) -> float | str:
        """[0, 1] (clipped) or choice index to the natural value; integers are rounded, never truncated.

        What float32, a vector's type, cannot tell from a continuous default is exactly that default.
        """
        if self.kind == "categorical":
            return self.choices[int(unit)]
        unit = min(max(float(unit), 0.0), 1.0)
        if self.kind == "continuous" and self._is_default(unit):
            return float(self.default)
        value = self.low + unit * (self.high - self.low)
        return int(np.floor(value + 0.5)) if self.kind == "integer" else value

    def _is_default(self, unit: np.ndarray) -> np.ndarray:
        return np.float32(unit) == np.float32(self.to_unit(self.default))

    @functools.cached_property
    def values(self) -> tuple[float | str, ...]:
        """Every natural value of an integer or categorical parameter, in order."""
        if self.kind == "categorical":
            return self.choices
        return tuple(range(int(self.low), int(self.high) + 1))

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """Prior probability of each state, `(states,)`; only for integer and categorical parameters."""
        prior = self.prior or {}
        if "beta" in prior:
            edges = stats.beta.cdf(np.linspace(0, 1, self.states + 1), *prior["beta"])
            weights = np.diff(edges)
        else:
            weights = np.asarray(prior.get("histogram", np.ones(self.states)), dtype=np.float64)
        weights = weights / weights.sum()
        share = prior.get("default_share", 0.0)
        weights = weights * (1 - share)
        weights[round(self._state(self.default))] += share
        return weights

    def _state(self, value: float | str) -> float:
        unit = self.to_unit(value)
        return unit if self.kind == "categorical" else unit * (self.states - 1)

    @functools.cached_property
    def edges(self) -> np.ndarray:
        """Cumulative prior over the states, `(states + 1,)` from 0 to 1."""
        return np.concatenate([[0.0], np.cumsum(self.probabilities)[:-1], [1.0]])

    @functools.cached_property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """`(unit, quantile)` support points of a continuous parameter's cumulative prior, both increasing."""
        prior = self.prior or {}
        if "beta" in prior:
            unit = np.linspace(0, 1, 257)
            quantile = stats.beta.cdf(unit, *prior["beta"])
        else:
            weights = np.asarray(prior.get("histogram", [1.0]), dtype=np.float64)
            unit = np.linspace(0, 1, len(weights) + 1)
            quantile = np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
        share = prior.get("default_share", 0.0)
        if share:  # a jump at the default: two support points at (nearly) the same place
            at = self.to_unit(self.default)
            before = np.interp(at, unit, quantile) * (1 - share)
            left, right = unit < at - STEP, unit > at + STEP
            inside = [max(at - STEP, 0.0), min(at + STEP, 1.0)]
            quantile = np.concatenate(
                [
                    quantile[left] * (1 - share),
                    [before, before + share],
                    quantile[right] * (1 - share) + share,
                ]
            )
            unit = np.concatenate([unit[left], inside, unit[right]])
        return unit, quantile + np.linspace(0, STEP, len(quantile))  # empty bins: keep it strictly increasing

    @functools.cached_property
    def default_quantiles(self) -> tuple[float, float] | None:
        """`(lowest, highest)` quantile of a continuous default with a share of its own; None without one."""
        if not (self.prior or {}).get("default_share"):
            return None
        at = self.to_unit(self.default)
        lowest, highest = np.interp([at - STEP, at + STEP], *self.curve)
        return lowest - STEP, highest  # the curve runs up to STEP too high

    def to_quantile(self, unit: np.ndarray) -> np.ndarray:
        """Unit values of a scalar parameter to quantiles in [0, 1].

        A state lies in the middle of its share, and so does a continuous default (to float32) that has a share.
        """
        if self.kind == "integer":
            state = np.floor(np.clip(unit, 0, 1) * (self.states - 1) + 0.5).astype(int)
            return (self.edges[state] + self.edges[state + 1]) / 2
        quantile = np.interp(unit, *self.curve)
        if self.default_quantiles is None:
            return quantile
        return np.where(self._is_default(unit), np.mean(self.default_quantiles), quantile)

    def from_quantile(self, quantile: np.ndarray) -> np.ndarray:
        """Quantiles (clipped to [0, 1]) to unit values; the inverse of `to_quantile` on every value with weight."""
        if self.kind == "continuous":
            unit = np.interp(quantile, *self.curve[::-1])
            if self.default_quantiles is None:
                return unit
            lowest, highest = self.default_quantiles
            at = np.clip(quantile, 0, 1)
            return np.where((lowest <= at) & (at <= highest), self.to_unit(self.default), unit)
        state = np.searchsorted(self.edges, np.clip(quantile, 0, 1 - 1e-9), side="right") - 1
        return state / (self.states - 1) if self.kind == "integer" else state

    def at_quantile(self, quantile: float) -> float | str:
        """The natural value at one quantile in [0, 1): `from_unit(from_quantile(quantile))`, much faster."""
        if self.states:
            return self.values[bisect(self._steps, quantile)]
        lowest, highest = self.default_quantiles or (2.0, 2.0)
        if lowest <= quantile <= highest:
            return float(self.default)
        units, quantiles = self._corners
        i = bisect(quantiles, quantile) - 1
        if i < 0 or i == len(units) - 1:
            return self.from_unit(units[max(i, 0)])
        slope = (units[i + 1] - units[i]) / (quantiles[i + 1] - quantiles[i])
        return self.from_unit(slope * (quantile - quantiles[i]) + units[i])

    @functools.cached_property
    def _steps(self) -> list[float]:
        return self.edges[1:-1].tolist()

    @functools.cached_property
    def _corners(self) -> tuple[list[float], list[float]]:
        return tuple(points.tolist() for points in self.curve)


@dataclass(frozen=True)
class ParameterSpace:
    """All parameters of a synth, the note, and the prior over both.

    Args:
        name: of the space; the file name without `.yaml`.
        synth: which one plays it; see `open_synth`.
        seconds: length of a clip.
        parameters: the synth's, in vector order.
        note: `pitch`, `start`, `end` as parameters (module `note`).
        velocity: MIDI velocity of every note.
        interchangeable: modules that can be swapped without changing the sound; see `interchangeable_in`.
        plugin: name of the plugin that the synth `vst3` hosts.
        base: what the synth is set to before a patch, in its own terms.
        text: the YAML it was read from, so that datasets and checkpoints can carry it.
    """

    name: str
    synth: str
    seconds: float
    parameters: tuple[Parameter, ...]
    note: tuple[Parameter, ...]
    velocity: int
    interchangeable: dict = field(default_factory=dict)
    plugin: str = ""
    base: dict = field(default_factory=dict)
    text: str = field(default="", repr=False, compare=False)

    @classmethod
    def load(cls, name_or_path: str | Path) -> ParameterSpace:
        """Read a space by name (`"dexed"`, from `spaces/`) or by the path of a YAML file. Raises `SpaceError`."""
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = SPACES / f"{name_or_path}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in SPACES.glob("*.yaml")))
            raise SpaceError(f"no space '{name_or_path}'; known: {known}; or pass the path of a .yaml file")
        return cls.parse(path.read_text())

    @classmethod
    def parse(cls, text: str) -> ParameterSpace:
        """Build a space from its YAML text. Raises `SpaceError` naming the parameter that is wrong."""
        try:
            data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            note = {name: dict(data["note"][name]) for name in NOTE_FIELDS}
            head = {key: data[key] for key in ("name", "synth", "seconds")}
            velocity = int(data["note"]["velocity"])
            rows = data["parameters"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise SpaceError(
                f"not a space file: {error!r}; see {SPACES.name}/dexed.yaml for the layout"
            ) from error
        return cls(
            **head,
            parameters=tuple(_parameter(name, row) for name, row in rows.items()),
            note=tuple(_parameter(name, {"module": "note", **row}) for name, row in note.items()),
            velocity=velocity,
            interchangeable=data.get("interchangeable") or {},
            plugin=data.get("plugin", ""),
            base=data.get("base") or {},
            text=text,
        )

    def __hash__(self) -> int:
        return hash(self.digest)

    @functools.cached_property
    def digest(self) -> str:
        """A short fingerprint of the whole space, to tell datasets and checkpoints of different spaces apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

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
        yield from self.note

    def __getitem__(self, name: str) -> Parameter:
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Parameter]:
        return {p.name: p for p in self}

    @property
    def default_patch(self) -> Patch:
        """The synth's initial patch."""
        return {p.name: p.default for p in self.parameters}

    def sample(self, rng: np.random.Generator) -> tuple[Patch, Note]:
        """Draw one patch and one note from the prior; one uniform number per parameter, in vector order."""
        uniform = rng.random(len(self.parameters) + len(self.note)).tolist()
        patch = {p.name: p.at_quantile(u) for p, u in zip(self, uniform)}
        return patch, self._note({name: patch.pop(name) for name in NOTE_FIELDS})

    def _note(self, values: dict) -> Note:
        start, end = sorted((float(values["start"]), float(values["end"])))  # their ranges may overlap
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
        for p in self:
            value, at = values[p.name], self.columns[p.name].start
            if p.kind == "categorical":
                vector[at + int(p.to_unit(value))] = 1.0
            else:
                vector[at] = p.to_unit(value)
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
        values = {}
        for p in self:
            block = vector[self.columns[p.name]]
            values[p.name] = p.from_unit(block.argmax() if p.kind == "categorical" else block[0])
        return {p.name: values[p.name] for p in self.parameters}, self._note(values)

    def to_quantiles(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors `(..., width)` to quantile coordinates of the same shape; one-hot blocks stay as they are."""
        return self._map_scalars(vectors, Parameter.to_quantile)

    def from_quantiles(self, quantiles: np.ndarray) -> np.ndarray:
        """The inverse of `to_quantiles`; values outside [0, 1] are clipped."""
        return self._map_scalars(quantiles, Parameter.from_quantile)

    def _map_scalars(self, array: np.ndarray, function) -> np.ndarray:
        out = np.array(array, dtype=np.float32)
        for p in self:
            if p.kind != "categorical":
                at = self.columns[p.name].start
                out[..., at] = function(p, np.asarray(array[..., at], dtype=np.float64))
        return out

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

    def interchangeable_in(self, patch: Patch) -> list[list[tuple[str, ...]]]:
        """Sets of module tuples that can trade places in this patch without changing its sound.

        `[[("op1", "op2"), ("op3", "op4")]]` says that operators 1 and 2, as a pair, may swap all their settings
        with 3 and 4. In the file: `swaps`, keyed by the value of the parameter named in `given` (of several, by
        their values, with commas between); `always` holds what needs no condition.
        """
        names = self.interchangeable.get("given", [])
        values = ", ".join(str(patch[name]) for name in ([names] if isinstance(names, str) else names))
        sets = self.interchangeable.get("always", []) + self.interchangeable.get("swaps", {}).get(values, [])
        return [[tuple(block) for block in blocks] for blocks in sets]

    def swap(self, patch: Patch, first: tuple[str, ...], second: tuple[str, ...]) -> Patch:
        """The patch with the settings of two module tuples exchanged (`("op1",)`, `("op3",)`)."""
        target = dict(zip(first + second, second + first))
        swapped = dict(patch)
        for p in self.parameters:
            if p.module in target:
                swapped[p.name.replace(p.module, target[p.module], 1)] = patch[p.name]
        return swapped

    def describe(self) -> pd.DataFrame:
        """One row per parameter: kind, range or choices, default, module, and what the prior makes of it."""
        return pd.DataFrame(
            [_row(p) for p in self], columns=["name", "module", "kind", "range", "default", "prior"]
        )


def _parameter(name: str, row: dict) -> Parameter:
    row = dict(row)
    if "choices" in row:
        if isinstance(row["choices"], dict):
            row["codes"] = tuple(row["choices"].values())
        row["choices"] = tuple(str(choice) for choice in row["choices"])
        row["default"] = str(row.get("default", row["choices"][0]))
    row.setdefault("default", row.get("low", 0.0))
    try:
        return Parameter(name=str(name), **row)
    except TypeError as error:
        raise SpaceError(f"parameter '{name}': {error}") from None


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
