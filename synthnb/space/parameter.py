"""One parameter of a synth: its kind, its range or choices, its prior, and the note that is played."""

from __future__ import annotations

import functools
from bisect import bisect
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from synthnb.space.faults import parameter_faults, shown

NOTE_FIELDS = ("pitch", "start", "end")  # the note's part of a vector; velocity is fixed by the space
LOUDNESS_FLOOR = -55.0  # LUFS; what stays below it counts as silent
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
        if fault := next(parameter_faults(self), None):
            raise SpaceError(f"parameter {shown(self.name)}: {fault}")
        self.to_unit(self.default)  # a default outside the range stops here

    @functools.cached_property
    def states(self) -> int:
        """How many values it can take; 0 for a continuous parameter."""
        if self.kind == "categorical":
            return len(self.choices)
        return round(self.high - self.low) + 1 if self.kind == "integer" else 0

    @property
    def span(self) -> tuple:
        """What values it can take, to compare it with another."""
        return self.kind, self.low, self.high, self.choices

    def name_in(self, module: str) -> str:
        """What its counterpart in a like module is called: `op1_coarse` in `op3` is `op3_coarse`."""
        return self.name.replace(self.module, module, 1)

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
        except (TypeError, ValueError, OverflowError):
            raise SpaceError(
                f"'{self.name}' is {shown(value)}; a number from {self.low:g} to {self.high:g} is needed"
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
        """The nearest natural value to what the synth holds: the choice with the nearest code, else clipped.

        Raises `SpaceError` on NaN.
        """
        if np.isnan(code):
            raise SpaceError(f"'{self.name}' is NaN in the synth; a number is needed")
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
        value = min(self.low + unit * (self.high - self.low), self.high)  # rounding may lead beyond
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
