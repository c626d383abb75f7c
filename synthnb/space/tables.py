"""All parameters of a space at once: what `Parameter` does to one value, to the bit, for whole vectors.

A search converts each candidate several times. One parameter after the other that takes as long as measuring a part
of its sound; as tables, side by side, a tenth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from synthnb.space.parameter import Parameter


class Tables:
    """The parameters of a space, in vector order, as arrays."""

    def __init__(self, parameters: Iterable[Parameter]):
        parameters = list(parameters)
        ends = np.cumsum([p.width for p in parameters])
        placed = [(p, int(end) - p.width) for p, end in zip(parameters, ends)]
        self._names = [p.name for p in parameters]
        self._numbers = _Numbers([each for each in placed if each[0].kind != "categorical"])
        whole = [each for each in placed if each[0].kind == "integer"]
        real = [each for each in placed if each[0].kind == "continuous"]
        self._integers, self._curves = _Integers(whole), _Curves(real)
        self._choices = [(p.name, p.choices, at, at + p.width) for p, at in placed if p.kind == "categorical"]
        self._codes = [(name, dict(zip(choices, range(at, end)))) for name, choices, at, end in self._choices]

    def decode(self, vector: np.ndarray) -> dict:
        """Natural values of every parameter, of a finite float64 vector `(width,)`."""
        values = dict.fromkeys(self._names)
        values.update(zip(self._numbers.names, self._numbers.values(vector)))
        for name, choices, start, stop in self._choices:
            values[name] = choices[vector[start:stop].argmax()]
        return values

    def encode(self, values: dict, vector: np.ndarray) -> bool:
        """Write natural values into a vector of zeros; False, and some of it written, if one isn't allowed."""
        try:
            for name, columns in self._codes:
                vector[columns[str(values[name])]] = 1.0
            return self._numbers.write(values, vector)
        except (KeyError, TypeError, ValueError, OverflowError):
            return False

    def to_quantiles(self, vectors: np.ndarray) -> np.ndarray:
        """`Parameter.to_quantile` on every scalar column of `(..., width)`."""
        return self._mapped(vectors, self._integers.to_quantile, self._curves.to_quantile)

    def from_quantiles(self, quantiles: np.ndarray) -> np.ndarray:
        """`Parameter.from_quantile` on every scalar column of `(..., width)`."""
        return self._mapped(quantiles, self._integers.from_quantile, self._curves.from_quantile)

    def _mapped(self, array: np.ndarray, integers, curves) -> np.ndarray:
        out = np.array(array, dtype=np.float32)
        for kind, function in ((self._integers, integers), (self._curves, curves)):
            if len(kind.columns):
                out[..., kind.columns] = function(np.asarray(array)[..., kind.columns].astype(np.float64))
        return out


class _Numbers:
    """Integer and continuous parameters as natural values."""

    def __init__(self, placed: Sequence[tuple[Parameter, int]]):
        self.names = [p.name for p, _ in placed]
        self._columns = np.array([at for _, at in placed], dtype=int)
        self._low, self._high = (
            np.array([getattr(p, end) for p, _ in placed], float) for end in ("low", "high")
        )
        self._range = self._high - self._low
        self._whole = [i for i, (p, _) in enumerate(placed) if p.kind == "integer"]
        real = [(i, p) for i, (p, _) in enumerate(placed) if p.kind == "continuous"]
        self._real = np.array([i for i, _ in real], dtype=int)
        self._defaults = np.array([p.default for _, p in real], float)
        self._at_default = np.array([p.to_unit(p.default) for _, p in real]).astype(np.float32)

    def values(self, vector: np.ndarray) -> list:
        units = np.clip(vector[self._columns], 0.0, 1.0)
        values = np.minimum(self._low + units * self._range, self._high)
        untouched = units[self._real].astype(np.float32) == self._at_default
        values[self._real] = np.where(untouched, self._defaults, values[self._real])
        values[self._whole] = np.floor(values[self._whole] + 0.5)
        natural = values.tolist()
        for i in self._whole:
            natural[i] = int(natural[i])
        return natural

    def write(self, values: dict, vector: np.ndarray) -> bool:
        numbers = np.array([float(values[name]) for name in self.names])
        whole = numbers[self._whole]
        if not ((self._low <= numbers) & (numbers <= self._high)).all() or (whole != np.rint(whole)).any():
            return False
        vector[self._columns] = (numbers - self._low) / self._range
        return True


class _Integers:
    def __init__(self, placed: Sequence[tuple[Parameter, int]]):
        self.columns = np.array([at for _, at in placed], dtype=int)
        self._edges = _Steps([p.edges for p, _ in placed])
        self._most = np.array([p.states - 1 for p, _ in placed])
        self._middles = _padded([(p.edges[:-1] + p.edges[1:]) / 2 for p, _ in placed], 0.0)

    def to_quantile(self, units: np.ndarray) -> np.ndarray:
        state = np.floor(np.clip(units, 0, 1) * self._most + 0.5).astype(int)
        return self._middles[np.arange(len(self.columns)), state]

    def from_quantile(self, quantiles: np.ndarray) -> np.ndarray:
        return self._edges.below(np.clip(quantiles, 0, 1 - 1e-9)) / self._most


class _Curves:
    def __init__(self, placed: Sequence[tuple[Parameter, int]]):
        self.columns = np.array([at for _, at in placed], dtype=int)
        curves = [p.curve for p, _ in placed]
        self._rise = _Interpolation(curves)
        self._fall = _Interpolation([curve[::-1] for curve in curves])
        defaults = [p.default_quantiles or (2.0, 2.0) for p, _ in placed]  # without a share: never met
        self._share = np.array(defaults).reshape(-1, 2).T
        self._middle = np.array([np.mean(both) for both in defaults])
        self._held = np.array([p.default_quantiles is not None for p, _ in placed], dtype=bool)
        self._default = np.array([p.to_unit(p.default) for p, _ in placed], float)

    def to_quantile(self, units: np.ndarray) -> np.ndarray:
        untouched = self._held & (units.astype(np.float32) == self._default.astype(np.float32))
        return np.where(untouched, self._middle, self._rise(units))

    def from_quantile(self, quantiles: np.ndarray) -> np.ndarray:
        at = np.clip(quantiles, 0, 1)
        inside = (self._share[0] <= at) & (at <= self._share[1])
        return np.where(inside, self._default, self._fall(quantiles))


class _Steps:
    """Ascending thresholds, a row a parameter."""

    def __init__(self, rows: Sequence[np.ndarray]):
        longest = max(map(len, rows), default=1)
        self._half = 1 << max(longest - 1, 1).bit_length() - 1  # of a power of two above every last index
        table = _padded(rows, np.inf, 2 * self._half)
        self._table, self._first = table.ravel(), np.arange(len(rows)) * table.shape[1]

    def below(self, values: np.ndarray) -> np.ndarray:
        """Index of the last threshold at or below each of `(..., parameters)`; 0 if none is."""
        at = np.broadcast_to(self._first, values.shape).copy()
        half = self._half
        while half:
            at += half * (self._table[at + half] <= values)
            half //= 2
        return at - self._first


class _Interpolation:
    """`np.interp`, each column of `(..., parameters)` on points of its own."""

    def __init__(self, points: Sequence[tuple[np.ndarray, np.ndarray]]):
        self._from = _Steps([x for x, _ in points])
        self._x, self._y = (_padded([each[i] for each in points], 0.0) for i in (0, 1))
        self._slope = _padded([np.append(np.diff(y) / np.diff(x), 0.0) for x, y in points], 0.0)
        self._least, self._most = np.array([(x[0], x[-1]) for x, _ in points]).reshape(-1, 2).T

    def __call__(self, values: np.ndarray) -> np.ndarray:
        values = np.clip(values, self._least, self._most)
        at = np.arange(values.shape[-1]), self._from.below(values)
        return self._slope[at] * (values - self._x[at]) + self._y[at]


def _padded(rows: Sequence[np.ndarray], fill: float, width: int | None = None) -> np.ndarray:
    width = width or max(map(len, rows), default=1)
    table = np.full((len(rows), width), fill)
    for row, values in zip(table, rows):
        row[: len(values)] = values
    return table
