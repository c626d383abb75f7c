"""Figures. They compute nothing but what is drawn; each function returns its figure and leaves no other behind.

Colours are Okabe and Ito's, which colour-blind people can tell apart: a target is always blue, a match orange.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from synthnb.features import BANDS, HOP, TOP_DB, log_mel
from synthnb.sound import SAMPLE_RATE

TARGET, MATCH, INK, FAINT = "#0072B2", "#D55E00", "#333333", "#8C8C8C"
SERIES = (
    TARGET,
    MATCH,
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  #: where more than two things are compared
HEAT = "magma"  # even steps of brightness, also in grey
KHZ = (0.5, 1, 2, 4, 8, 16)
ENVELOPE = 0.020  # seconds of an envelope's windows
QUIETEST = -60.0  # dB below the loudest; envelopes are drawn down to here
DPI = 80


def _plain(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Have texts drawn as they are: a dollar sign in a file's name begins no formula."""

    @functools.wraps(draw)
    def drawn(*given, **named) -> Figure:
        fig = draw(*given, **named)
        for text in fig.findobj(Text):
            text.set_parse_math(False)
        return fig

    return drawn


@_plain
def compare(target: np.ndarray, match: np.ndarray, title: str = "") -> Figure:
    """Target and match: log-mel spectrograms on one colour scale, below them how their levels move.

    Args:
        target, match: float `(channels, samples)` at 44.1 kHz; channels are averaged in the picture.
        title: above it all.
    """
    fig, grid = _figure(9.5, 5.0, title)
    top, bottom = grid.add_gridspec(2, 1, height_ratios=[3, 1.3])
    left, right = top.subgridspec(1, 2, wspace=0.05)
    axes = [fig.add_subplot(left), fig.add_subplot(right)]
    for ax, audio, name, colour in zip(axes, (target, match), ("target", "match"), (TARGET, MATCH)):
        image = _spectrogram(ax, log_mel(torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))))
        ax.set_title(name, color=colour, fontsize=11, fontweight="bold", loc="left")
        ax.set_xlabel("seconds")
    axes[0].set_ylabel("kHz")
    axes[1].set_yticklabels([])
    fig.colorbar(image, ax=axes, pad=0.01, aspect=30, label="dB below the loudest").outline.set_visible(False)
    ax = fig.add_subplot(bottom)
    levels = [_envelope(audio) for audio in (target, match)]
    loudest = max(level.max() for level in levels)
    for level, name, colour in zip(levels, ("target", "match"), (TARGET, MATCH)):
        ax.plot(np.arange(len(level)) * ENVELOPE, level, color=colour, lw=2, alpha=0.85, label=name)
    ax.set(xlabel="seconds", ylabel="level, dBFS", xlim=(0, target.shape[-1] / SAMPLE_RATE))
    ax.set_ylim(loudest + QUIETEST, loudest + 4)
    ax.legend(frameon=False, ncols=2, loc="upper right", fontsize=9)
    _tidy(ax)
    return fig


@_plain
def spectrograms(mels: Sequence[np.ndarray], titles: Sequence[str], columns: int = 4) -> Figure:
    """A gallery of log-mel spectrograms, each `(channels, 128, frames)` in dB, on one colour scale."""
    columns = max(1, min(columns, len(mels)))
    rows = math.ceil(len(mels) / columns)
    fig, grid = _figure(2.4 * columns + 0.6, 1.75 * rows + 0.3)
    axes = grid.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for index, ax in enumerate(axes.flat):
        if index >= len(mels):
            ax.set_axis_off()
            continue
        _spectrogram(ax, mels[index])
        ax.set_title(titles[index], fontsize=8.5, color=INK, loc="left", pad=3)
        if index % columns == 0:
            ax.set_ylabel("kHz", fontsize=8)
        if index + columns >= len(mels):
            ax.set_xlabel("seconds", fontsize=8)
            ax.tick_params(labelbottom=True)
        ax.tick_params(labelsize=8)
    return fig


@_plain
def histograms(panels: Mapping[str, np.ndarray | Mapping[str, np.ndarray]], bins: int = 24) -> Figure:
    """One histogram beside the other.

    Args:
        panels: axis label (with its unit) to values `(n,)`, or to several named sets of values that are overlaid.
            Values that are not finite (the loudness of silence) are left out.
    """
    fig, grid = _figure(3.2 * len(panels), 2.6)
    for ax, (label, values) in zip(grid.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        sets = dict(values) if isinstance(values, Mapping) else {"": values}
        sets = {name: np.asarray(v, dtype=float)[np.isfinite(v)] for name, v in sets.items()}
        pooled = np.concatenate(list(sets.values()))
        edges = np.histogram_bin_edges(pooled, bins) if len(pooled) else np.array([0.0, 1.0])
        for (name, numbers), colour in zip(sets.items(), SERIES):
            ax.hist(numbers, edges, color=colour, alpha=0.45 if len(sets) > 1 else 0.8, label=name or None)
            ax.hist(numbers, edges, color=colour, histtype="step", lw=1.2)
        if len(sets) > 1:
            ax.legend(frameon=False, fontsize=8)
        ax.set_xlabel(label)
        ax.set_xlim(edges[0], edges[-1])
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        _tidy(ax)
    fig.axes[0].set_ylabel("clips")
    return fig


@_plain
def entropies(table: pd.DataFrame) -> Figure:
    """How open each parameter is: one dot per row (named below) and column, sorted by the last column.

    Args:
        table: one row per parameter (at most 60 can be read), one column per space, entropy in bits.
    """
    fig, grid = _figure(9.5, 3.6)
    ax = grid.subplots()
    table = table.sort_values(table.columns[-1])
    at = np.arange(len(table))
    ax.vlines(at, table.min(axis=1), table.max(axis=1), color="#DDDDDD", lw=2, zorder=1)
    for column, colour, marker in zip(table.columns, (TARGET, MATCH), "so"):
        ax.scatter(at, table[column], s=22, color=colour, marker=marker, label=column, zorder=2)
    ax.set(ylabel="entropy, bits", xlim=(-0.8, len(table) - 0.2), ylim=(0, None))
    ax.set_xticks(at, table.index, rotation=90)
    _tidy(ax)
    ax.tick_params(axis="x", labelsize=8)
    fig.legend(frameon=False, fontsize=9, ncols=2, loc="outside upper left")
    return fig


@_plain
def curves(table: pd.DataFrame) -> Figure:
    """Training curves from columns `step`, `train_loss`, `val_loss`; NaN where nothing was logged."""
    fig, grid = _figure(8.0, 3.2)
    ax = grid.subplots()
    train = table.dropna(subset=["train_loss"])
    val = table.dropna(subset=["val_loss"])
    ax.plot(train["step"], train["train_loss"], color=FAINT, lw=1, alpha=0.8, label="training batches")
    ax.plot(
        val["step"],
        val["val_loss"],
        color=TARGET,
        lw=2,
        marker="o",
        ms=4,
        label="validation, averaged weights",
    )
    if len(val):
        best = val.loc[val["val_loss"].idxmin()]
        ax.annotate(
            f"{best['val_loss']:.3f}",
            (best["step"], best["val_loss"]),
            (0, 7),
            textcoords="offset points",
            color=TARGET,
            fontsize=9,
            ha="right",
        )
    ax.set(xlabel="step", ylabel="loss")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    ax.legend(frameon=False, fontsize=9)
    _tidy(ax)
    return fig


@_plain
def search(history: Sequence[tuple[float, int, float]]) -> Figure:
    """A search over time, from `Match.history`: seconds below, the renders they bought above, best distance."""
    seconds, renders, distance = (np.array(column, dtype=float) for column in zip(*history))
    fig, grid = _figure(8.0, 3.2)
    ax = grid.subplots()
    ax.step(seconds, distance, where="post", color=MATCH, lw=2)
    ax.fill_between(seconds, distance, step="post", color=MATCH, alpha=0.12, lw=0)
    early = seconds[0] < 0.6 * seconds[-1] or len(seconds) == 1
    for index, words, side in ((0, "first", 6 if early else -6), (-1, "best", -6)):
        ax.plot(seconds[index], distance[index], "o", color=MATCH, ms=6)
        if index == 0 or len(seconds) > 1:
            ax.annotate(
                f"{words}: {distance[index]:.2f}",
                (seconds[index], distance[index]),
                (side, 8 if index == 0 or distance[-1] < 0.2 * distance[0] else -15),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                fontsize=9,
                color=INK,
            )
    ax.set(xlabel="seconds", ylabel="distance", xlim=(0, seconds[-1] * 1.03))
    ax.set_ylim(0, distance.max() * 1.18 + 1e-9)
    _tidy(ax)
    if len(seconds) > 1:
        above = ax.twiny()
        places = np.linspace(0, seconds[-1], 8)
        marks = np.unique(np.searchsorted(seconds, places[places >= seconds[0]]))
        above.set(xlim=ax.get_xlim(), xticks=seconds[marks], xlabel="renders")
        above.set_xticklabels([f"{renders[mark]:.0f}" for mark in marks])
        _tidy(above, grid=False)
    return fig


@_plain
def versus(results: Mapping[str, pd.DataFrame], across: str, up: str, metric: str) -> Figure:
    """Two systems, sound by sound: one panel for each table of `evaluate`, equal results lie on the line."""
    fig, grid = _figure(3.4 * len(results), 3.5)
    for ax, (name, table) in zip(np.atleast_1d(grid.subplots(1, len(results))), results.items()):
        wide = table.pivot(index="target", columns="system", values=metric)
        end = max(wide[across].max(), wide[up].max()) * 1.05
        ax.plot([0, end], [0, end], color=FAINT, lw=1)
        ax.plot(wide[across], wide[up], "o", color=TARGET, ms=5, alpha=0.6, mew=0)
        ax.set(
            xlim=(0, end),
            ylim=(0, end),
            aspect="equal",
            xlabel=f"{metric}, {across}",
            ylabel=f"{metric}, {up}",
        )
        ax.set_title(name, color=INK, fontsize=11, loc="left")
        _tidy(ax)
    return fig


@_plain
def race(means: pd.DataFrame, value: str, unit: str, ours: str = "") -> Figure:
    """How methods come closer: a line for each row of `standings.means`, over renders or seconds (its columns).

    Args:
        value, unit: what is on the axes.
        ours: the row that is drawn in front.
    """
    fig, grid = _figure(8.0, 3.8)
    ax = grid.subplots()
    for index, (method, line) in enumerate(means.iterrows()):
        style, front = "-" if index < len(SERIES) else "--", method == ours
        colour = SERIES[index % len(SERIES)]
        ax.plot(line.index, line, style, color=colour, lw=3 if front else 1.5, marker="o", ms=4, label=method)
    ax.set(xscale="log", xlabel=unit, ylabel=value)
    ax.set_xticks(means.columns, [f"{at:g}" for at in means.columns])
    ax.set_xticks([], minor=True)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _tidy(ax)
    return fig


def _figure(width: float, height: float, title: str = "") -> tuple[Figure, Figure]:
    """A figure and what to draw on: pyplot made it (so that notebooks show it) and has forgotten it again."""
    fig = plt.figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    plt.close(fig)
    if title:
        fig.suptitle(title, color=INK, fontsize=12, x=0.01, ha="left")
    return fig, fig


def _spectrogram(ax: Axes, mel):
    mel = np.asarray(mel, dtype=np.float32)
    picture = mel.reshape(-1, *mel.shape[-2:]).mean(axis=0)
    end = picture.shape[1] * HOP / SAMPLE_RATE
    image = ax.imshow(
        picture,
        origin="lower",
        aspect="auto",
        cmap=HEAT,
        vmin=-TOP_DB,
        vmax=0,
        extent=(0, end, 0, len(picture)),
        interpolation="nearest",
    )
    centres = librosa.mel_frequencies(n_mels=BANDS + 2, fmin=0, fmax=SAMPLE_RATE / 2)[1:-1]
    ax.set_yticks(
        np.interp([1000 * f for f in KHZ], centres, np.arange(BANDS) + 0.5), [f"{f:g}" for f in KHZ]
    )
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(color=FAINT, labelcolor=INK, length=3, labelsize=9)
    return image


def _envelope(audio: np.ndarray) -> np.ndarray:
    """RMS level in dBFS, one value for every `ENVELOPE` seconds, `(windows,)`."""
    window = round(ENVELOPE * SAMPLE_RATE)
    whole = audio.shape[-1] // window * window
    power = (
        np.square(audio[..., :whole], dtype=np.float64).reshape(-1, whole // window, window).mean(axis=(0, 2))
    )
    return 10 * np.log10(power + 1e-12)


def _tidy(ax: Axes, grid: bool = True) -> None:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(FAINT)
    ax.tick_params(color=FAINT, labelcolor=INK, length=3, labelsize=9)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    if grid:
        ax.grid(axis="y", color="#E8E8E8", lw=0.8)
        ax.set_axisbelow(True)
