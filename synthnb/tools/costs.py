"""Where the time of a dataset goes, against the only part that can't be saved: the synth's own rendering.

python -m synthnb.tools.costs dexed
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from synthnb.data.generate import CLIPS_PER_BATCH
from synthnb.features import log_mel
from synthnb.sound import SAMPLE_RATE, is_as_loud_as
from synthnb.space import LOUDNESS_FLOOR, ParameterSpace
from synthnb.synths import open_synth


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Bind this process, and what it starts, to one core; nothing where the system can't."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@_one_core()
def costs(space: ParameterSpace, patches: int = 300, seed: int = 0) -> pd.Series:
    """Render random patches on one core, in batches as `generate` does, with a clock at every step.

    Returns:
        Milliseconds a patch to `draw`; milliseconds a rendered one for the `engine` to play, for all else in rendering
        (`set`), to `check` its loudness; milliseconds a kept clip to `featurize` and `write`; the shares of patches
        that were `rendered` and not known to be too quiet before, and that are loud enough and `kept`;
        `clips_per_second`, rendered, and `kept_per_second`; `ratio`, the engine's share of the whole time.
    """
    synth = open_synth(space)
    rng = np.random.default_rng(seed)
    synth.render(*space.sample(rng), space.seconds)  # the first one warms everything up
    spent = dict.fromkeys(("draw", "engine", "set", "check", "featurize", "write"), 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rendered = kept = 0

    def clock(step: str, since: float) -> float:
        now = time.perf_counter()
        spent[step] += now - since
        return now

    sounds = np.empty((CLIPS_PER_BATCH, synth.channels, round(space.seconds * SAMPLE_RATE)), np.float32)
    with tempfile.TemporaryDirectory() as folder, h5py.File(Path(folder, "clips.h5"), "w") as file:
        for first in range(0, patches, CLIPS_PER_BATCH):
            now = time.perf_counter()
            drawn = [space.sample(rng) for _ in range(min(CLIPS_PER_BATCH, patches - first))]
            drawn = [clip for clip in drawn if synth.ceiling(*clip) >= LOUDNESS_FLOOR]
            rendered += len(drawn)
            clock("draw", now)
            loud = []
            for patch, note in drawn:
                now = time.perf_counter()
                sounds[len(loud)] = synth.render(patch, note, space.seconds)[: synth.channels]
                now = clock("set", now)
                if is_as_loud_as(sounds[len(loud)], LOUDNESS_FLOOR):
                    loud.append((patch, note))
                clock("check", now)
                # Right after, so that both meet the same state of the machine.
                spent["engine"] += synth.engine_seconds(patch, note, space.seconds)
            kept += len(loud)
            if loud:
                now = time.perf_counter()
                heard = torch.from_numpy(sounds[: len(loud)])
                mel = log_mel(heard).half().numpy()
                now = clock("featurize", now)
                file[f"audio/{first}"], file[f"mel_spec/{first}"] = heard.half().numpy(), mel
                file[f"param_array/{first}"] = np.stack([space.encode(*clip) for clip in loud])
                clock("write", now)
    torch.set_num_threads(threads)
    engine = spent["engine"]
    whole = sum(spent.values()) - engine
    spent["set"] -= engine
    counts = dict.fromkeys(spent, rendered) | {"draw": patches, "featurize": kept, "write": kept}
    each = {step: 1e3 * seconds / max(counts[step], 1) for step, seconds in spent.items()}
    shares = {"rendered": rendered / patches, "kept": kept / patches}
    rates = {"clips_per_second": rendered / whole, "kept_per_second": kept / whole, "ratio": engine / whole}
    return pd.Series({**each, **shares, **rates}, name=space.name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m synthnb.tools.costs", description=__doc__)
    parser.add_argument("space", help="a space's name or .yaml file")
    parser.add_argument("--patches", type=int, default=300, help="random patches (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the patches (0)")
    given = parser.parse_args()
    print(costs(ParameterSpace.load(given.space), given.patches, given.seed).round(3).to_string())


if __name__ == "__main__":
    main()
