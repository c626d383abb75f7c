"""Tables of an evaluation: means with intervals, differences, and how far a synth is from itself."""

from __future__ import annotations

import numpy as np
import pandas as pd

from synthnb.evaluate.run import SYSTEMS
from synthnb.metrics import METRICS, all_metrics, bootstrap_mean, paired_difference
from synthnb.sound import is_as_loud_as
from synthnb.space import LOUDNESS_FLOOR, ParameterSpace
from synthnb.synths import open_synth

FLOOR = "the same patch again"
ATTEMPTS = 100  # patches drawn for each that is wanted, of which some are silent


def summary(table: pd.DataFrame, floor: pd.DataFrame | None = None, seed: int = 0) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval of every metric for every system, in the order of `SYSTEMS`.

    `floor`, what `noise_floor` measured, comes last: no system can be expected to come closer.
    """
    rows = []
    if floor is not None:
        table = pd.concat([table, floor.assign(system=FLOOR, renders=1)])
    for system in [*SYSTEMS, FLOOR]:
        part = table[table["system"] == system]
        if len(part):
            digits = {name: 2 if name in ("MSS", "wMFCC") else 3 for name in METRICS}
            row = {"system": system}
            for name, d in digits.items():
                mean, low, high = bootstrap_mean(part[name], seed)
                row[name] = f"{mean:.{d}f} [{low:.{d}f}, {high:.{d}f}]"
            rows.append({**row, "renders": round(part["renders"].mean()), "n": len(part)})
    return pd.DataFrame(rows).set_index("system")


def compare(
    table: pd.DataFrame, a: str, b: str, metric: str = "MSS", seed: int = 0
) -> tuple[float, float, float]:
    """Mean over targets of `a` minus `b` with its 95 % bootstrap interval, both measured on the same targets."""
    wide = table.pivot(index="target", columns="system", values=metric)[[a, b]].dropna()
    return paired_difference(wide[a], wide[b], seed)


def noise_floor(space: ParameterSpace, patches: int = 50, seed: int = 0) -> pd.DataFrame:
    """How far a synth is from itself: the metrics between two renders of the same random patch, a row for each.

    No match can be expected to come closer. Silent patches are left out; all is 0 (RMS 1) for a synth that repeats.
    """
    synth, rng, rows = open_synth(space), np.random.default_rng(seed), []
    for _ in range(ATTEMPTS * patches):
        if len(rows) == patches:
            break
        patch, note = space.sample(rng)
        once, again = (synth.render(patch, note, space.seconds)[: synth.channels] for _ in range(2))
        if is_as_loud_as(once, LOUDNESS_FLOOR):
            rows.append({**all_metrics(once, again), "sample": float(np.abs(once - again).max())})
    return pd.DataFrame(rows, columns=[*METRICS, "sample"])
