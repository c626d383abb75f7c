"""Tables of a shoot-out: how methods stand after so many renders or seconds, what is heard, how candidates differ."""

from __future__ import annotations

import numpy as np
import pandas as pd

from synthnb.evaluate.heard import IN_TUNE, LATE, LOUD_TAIL
from synthnb.evaluate.shootout import Ranking
from synthnb.metrics import bootstrap_mean, paired_difference
from synthnb.search.match import Match


def means(table: pd.DataFrame, value: str = "distance") -> pd.DataFrame:
    """Mean over sounds, methods by checkpoints; NaN where a method had nothing yet for some sound."""
    sounds = table["target"].nunique()
    groups = table.groupby(["method", "at"], sort=False)[value].agg(["mean", "count"])
    wide = groups["mean"].where(groups["count"] == sounds).unstack()
    return wide.loc[list(dict.fromkeys(table["method"])), sorted(wide.columns)]


def against(table: pd.DataFrame, reference: str, value: str = "distance", seed: int = 0) -> pd.DataFrame:
    """`means` as text, and what each method differs from `reference` on the same sounds, with its 95 % interval.

    `1.03 (+0.12 [0.05, 0.20])` is worse than the reference by 0.12. Columns are checkpoints.
    """
    shown = means(table, value)
    by_sound = table.pivot(index=["kind", "target"], columns=["method", "at"], values=value)
    cells = pd.DataFrame("", index=shown.index, columns=shown.columns)
    for method in shown.index:
        for at in shown.columns:
            cells.loc[method, at] = "" if np.isnan(shown.loc[method, at]) else f"{shown.loc[method, at]:.2f}"
            if method != reference and shown.loc[[method, reference], at].notna().all():
                gap, low, high = paired_difference(by_sound[method, at], by_sound[reference, at], seed)
                cells.loc[method, at] += f" ({gap:+.2f} [{low:+.2f}, {high:+.2f}])"
    return cells.rename(columns="{:g}".format)


def crossed(table: pd.DataFrame, first: tuple[str, float], second: tuple[str, float], value: str) -> str:
    """One method after so much against another after so much more, in words: means, and difference with interval.

    Over the sounds for which both had something by then.
    """
    by_sound = table.pivot(index=["kind", "target"], columns=["method", "at"], values=value)
    both = by_sound.reindex(columns=[first, second]).dropna()
    if both.empty:
        return f"{value}: nothing to compare yet after {first[1]:g}"
    gap, low, high = paired_difference(both[first], both[second])
    a, b = (f"{method} after {at:g} {both[method, at].mean():.2f}" for method, at in (first, second))
    return f"{value}: {a}, {b}; difference {gap:+.2f} [{low:+.2f}, {high:+.2f}], n = {len(both)}"


def noticed(table: pd.DataFrame) -> pd.DataFrame:
    """Of every method's last results: how many are in tune, don't ring on, attack in time; and their MSS."""
    rows = {}
    for method, found in table.groupby("method", sort=False):
        last = found.loc[found.groupby(["kind", "target"])["at"].idxmax()]
        pitched = last["cents"].notna()
        mean, low, high = bootstrap_mean(last["MSS"])
        late = np.abs(np.log(last["attack"])) <= np.log(LATE)
        rows[method] = {
            f"within {IN_TUNE:g} cents": f"{(last['cents'].abs() <= IN_TUNE).sum()} of {pitched.sum()}",
            f"last second within {LOUD_TAIL:g} dB": f"{(last['tail'].abs() <= LOUD_TAIL).sum()} of {len(last)}",
            f"attack within a factor of {LATE:g}": f"{late.sum()} of {len(last)}",
            "MSS": f"{mean:.2f} [{low:.2f}, {high:.2f}]",
        }
    return pd.DataFrame(rows).T


def spread(match: Match, count: int = 6) -> pd.DataFrame:
    """Distances between `count` different candidates of a match, each as the target of the others; NaN from itself."""
    sounds = [match.audio(candidate) for candidate in match.different(count)]
    gaps = np.array([Ranking(sound)(np.stack(sounds)) for sound in sounds])
    names = pd.RangeIndex(1, len(sounds) + 1, name="candidate")
    np.fill_diagonal(gaps, np.nan)
    return pd.DataFrame((gaps + gaps.T) / 2, index=names, columns=names)
