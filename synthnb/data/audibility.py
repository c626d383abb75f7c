"""How audible each parameter is: what a training should care about."""

from __future__ import annotations

import joblib
import numpy as np
import pandas as pd
import torch

from synthnb.data.draw import sample_clip
from synthnb.features import log_mel
from synthnb.space import LOUDNESS_FLOOR, ParameterSpace
from synthnb.synths import open_space


def audibility(space: ParameterSpace, patches: int = 40, seed: int = 0, workers: int = -1) -> pd.Series:
    """How much a sound changes when one parameter alone takes another value.

    Args:
        patches: drawn from the prior; on each, every parameter is drawn again until it differs, and rendered.
        workers: processes; -1 takes all cores.

    Returns:
        For every parameter, and the note's `pitch`, `start` and `end`, the mean absolute difference of the log-mel
        spectrograms in dB.
    """
    work = joblib.Parallel(n_jobs=workers)(
        joblib.delayed(_changes)(space.text, seed, index) for index in range(patches)
    )
    return pd.Series(np.mean(work, axis=0), index=[p.name for p in space], name="dB")


def _changes(text: str, seed: int, index: int) -> list[float]:
    torch.set_num_threads(1)
    space, synth = open_space(text)
    patch, note, audio = sample_clip(space, synth, seed, index, LOUDNESS_FLOOR)
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
        after = log_mel(torch.from_numpy(synth.render(*changed, space.seconds)[: synth.channels].copy()))
        changes.append((after - before).abs().mean().item())
    return changes
