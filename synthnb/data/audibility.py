"""How audible each parameter is: what a training should care about."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from synthnb.data.draw import render, sample_clip
from synthnb.data.pool import each
from synthnb.features import log_mel
from synthnb.space import LOUDNESS_FLOOR, ParameterSpace
from synthnb.synths import SynthCrash, open_space


def audibility(
    space: ParameterSpace,
    patches: int = 40,
    seed: int = 0,
    loudness_floor: float = LOUDNESS_FLOOR,
    workers: int | str = -1,
    progress: bool = False,
) -> pd.Series:
    """How much a sound changes when one parameter alone takes another value.

    Args:
        patches: drawn from the prior; on each, every parameter is drawn again until it differs, and rendered.
        workers: processes, or a dask scheduler; see `each`.

    Returns:
        For every parameter, and the note's `pitch`, `start` and `end`, the mean absolute difference of the log-mel
        spectrograms in dB.
    """
    jobs = {i: (space.text, seed, i, loudness_floor) for i in range(patches)}
    found = tqdm(each(_changes, jobs, workers), "audibility", patches, unit="patch", disable=not progress)
    work = np.array([changes for _, changes in sorted(found)])
    counts = np.isfinite(work).sum(axis=0).clip(1)  # without those whose change crashes the synth
    return pd.Series(np.nansum(work, axis=0) / counts, [p.name for p in space], name="dB")


def _changes(text: str, seed: int, index: int, loudness_floor: float) -> list[float]:
    space, synth = open_space(text)
    patch, note, audio = sample_clip(space, synth, seed, index, loudness_floor)
    before, rng = log_mel(torch.from_numpy(audio)), np.random.default_rng([seed, index, 1])
    changes = []
    for p in space:
        of_note = p.name not in patch
        old = value = getattr(note, p.name) if of_note else patch[p.name]
        for _ in range(100):  # a prior may know a single value
            if value != old:
                break
            other, other_note = space.sample(rng)
            value = getattr(other_note, p.name) if of_note else other[p.name]
        changed = patch | note._asdict() | {p.name: value}
        changed = {name: changed[name] for name in patch}, space.note(changed)
        try:
            after = log_mel(torch.from_numpy(render(synth, *changed, space.seconds).copy()))
            changes.append((after - before).abs().mean().item())
        except SynthCrash:
            changes.append(float("nan"))
    return changes
