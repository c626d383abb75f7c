"""Fit a space's prior to patches that people made: one histogram per parameter.

What is kept is statistics only; no patch can be read back from them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from synthnb.space import ParameterSpace, Patch, SpaceError

UNIFORM_SHARE = 0.03  # of every histogram, so that no value is impossible
BINS = 32  # of a continuous parameter's histogram


def fit_prior(space: ParameterSpace, patches: list[Patch], name: str) -> ParameterSpace:
    """A space like `space` whose prior follows `patches`; 20 or more are needed, or it raises `SpaceError`.

    Each parameter gets the histogram of its values in `patches`, `UNIFORM_SHARE` of it spread evenly; a continuous one
    that many leave at its default gets the share of those, and the histogram of the others. The note's prior stays.
    (Correlations by a Gaussian copula were tried with the DX7 and brought nothing: the nearest of 600 random patches
    was as far from human presets with them as without.)
    """
    if len(patches) < 20:
        raise SpaceError(f"{len(patches)} patches are too few to fit a prior; 20 or more are needed")
    parameters = []
    for p in space.parameters:
        units = np.array([p.to_unit(patch[p.name]) for patch in patches], dtype=np.float64)
        bins, share = p.states or BINS, {}
        if p.kind == "continuous":
            untouched = np.float32(units) == np.float32(p.to_unit(p.default))
            if untouched.mean() > 0.05:
                share, units = {"default_share": round(float(untouched.mean()), 4)}, units[~untouched]
        last = 1.0 if p.kind == "categorical" else bins - 1.0 if p.kind == "integer" else float(bins)
        state = np.clip(np.floor(units * last + (0.5 if p.kind == "integer" else 0)), 0, bins - 1).astype(int)
        counts = np.bincount(state, minlength=bins) / max(len(units), 1)
        weights = np.round(1000 * ((1 - UNIFORM_SHARE) * counts + UNIFORM_SHARE / bins), 2)
        parameters.append(replace(p, prior={"histogram": weights.tolist(), **share}))
    return replace(space, name=name, parameters=tuple(parameters))


def check_writable(path: str | Path) -> None:
    """Raise `SpaceError` if a space can't be written there; ask before the work that makes it.

    Nothing is ever overwritten: it may be a bank of presets, or a space that somebody has edited.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml"):
        raise SpaceError(f"{path}: a space is a .yaml file; call it {path.with_suffix('.yaml').name}")
    try:
        path.open("x").close()
    except FileExistsError:
        raise SpaceError(f"{path} is there already; give another name or remove it") from None
    except OSError as error:
        raise SpaceError(f"{path} can't be written: {error.strerror}; give another folder") from error
    path.unlink()


def write_space(path: str | Path, space: ParameterSpace) -> Path:
    """Write a space as a new YAML file. Raises `SpaceError`; see `check_writable`."""
    check_writable(path)
    path = Path(path)
    path.write_text(space.text, encoding="utf-8")
    return path
