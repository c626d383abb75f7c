"""Measure a model against its baselines: same targets, same ranking, same number of renders, in one run.

Every target is matched by every system of `SYSTEMS`; what a system keeps is its candidate with the smallest
`Distance`, and all four metrics are taken of that. Results are written per target, with what they depend on, so that
an interrupted evaluation goes on where it stopped and one with another model or settings starts afresh.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from synthnb.data.feed import compact_copy, save_rows
from synthnb.data.library import cells
from synthnb.data.shards import open_split, read_space
from synthnb.features import coarse, log_mel
from synthnb.metrics import METRICS, Distance, all_metrics, bootstrap_mean, paired_difference
from synthnb.models.checkpoint import checkpoint_path, load_model
from synthnb.search.matcher import FROM_NOISE, Matcher, gain, score
from synthnb.sound import prepare, read_sound
from synthnb.space import ParameterSpace
from synthnb.space.edits import edit
from synthnb.synths import open_synth

CANDIDATES = 32
SYSTEMS = {
    "default patch": "the synth's initial patch",
    "best of 32 random": "patches drawn from the prior",
    "nearest neighbour": "the training clip that sounds most like the target",
    "best of 32 neighbours": "the 32 that sound most like it",
    "random edits, best of 32": "like the flow's, but the edits are drawn without listening",
    "flow, one sample": "the flow's first, from noise",
    "flow from noise, best of 32": "32 of those",
    "flow, best of 32": "what a match proposes: 8 of the model's library, then 24 edits of the best so far by the flow",
    "flow, refined": "the best of those, refined",
}
REFINED = "flow, refined"
FLOOR = "the same patch again"
CHUNK = 4096  # training clips compared at once


@dataclass(frozen=True)
class Target:
    """A sound to match: float32 `(channels, samples)` of the space's length.

    `recorded`: not made by the synth, so its level means nothing: renders are brought to it before being measured.
    """

    name: str
    audio: np.ndarray
    recorded: bool = False


def held_out_clips(folder: str | Path, count: int, space: str | Path | None = None) -> list[Target]:
    """The first `count` test clips of a dataset that were drawn from the prior, rendered from their parameters.

    `space` is the name or path of its space, for a dataset whose attributes do not say it.
    """
    with open_split(Path(folder) / "test.h5") as file:
        space = read_space(file, space)
        family = 1 + int(file.attrs.get("edits", 0))
        vectors = file["param_array"][::family][:count]
    synth = open_synth(space)
    return [
        Target(f"clip {i}", synth.render(*space.decode(vector), space.seconds)[: synth.channels])
        for i, vector in enumerate(vectors)
    ]


def presets(paths: Sequence[Path], space: ParameterSpace, count: int, seed: int = 0) -> list[Target]:
    """`count` presets from files that the synth reads, each once, played with notes drawn from the space's prior."""
    synth = open_synth(space)
    with warnings.catch_warnings(action="ignore"):  # of what the space does not cover
        voices = [voice for path in paths for voice in synth.load_bank(path)]
    patches = {tuple(patch.items()): (name, patch) for name, patch in voices}
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(patches))[:count]
    patches = list(patches.values())
    targets = []
    for i in chosen:
        name, patch = patches[i]
        _, note = space.sample(rng)
        targets.append(
            Target(f"preset {i} {name}", synth.render(patch, note, space.seconds)[: synth.channels])
        )
    return targets


def recordings_as_targets(paths: Sequence[str | Path], space: ParameterSpace) -> list[Target]:
    """Sound files, read and cut as for a match."""
    return [
        Target(Path(path).stem, prepare(read_sound(path), space.seconds), recorded=True) for path in paths
    ]


class Retrieval:
    """Nearest neighbours among all training clips, by mean absolute difference of their spectrograms' `cells`.

    The index, float16 `(clips, cells)`, is made once for a dataset and kept in `cache`.
    """

    def __init__(self, folder: str | Path, cache: str | Path):
        self.folder = Path(folder)
        with open_split(self.folder / "train.h5") as file:
            vectors = file["param_array"]
            text = vectors[:64].tobytes() + str(vectors.shape).encode()
        self.digest = hashlib.sha256(text).hexdigest()[:12]
        path = Path(cache) / f"index-{self.digest}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            mel = compact_copy(self.folder / "train.h5")["mel"]
            parts = (
                cells(torch.from_numpy(np.array(mel[first : first + CHUNK]))).half().numpy()
                for first in range(0, len(mel), CHUNK)
            )
            save_rows(path, len(mel), parts)
        self.index = np.load(path, mmap_mode="c")  # no copy is written; only so does torch take it

    def nearest(self, mel: torch.Tensor, count: int) -> np.ndarray:
        """Vectors `(count, width)` of the training clips nearest to a spectrogram `(channels, bands, frames)`."""
        query = cells(coarse(mel[None]))
        gaps = [
            (torch.from_numpy(self.index[first : first + CHUNK]).float() - query).abs().mean(dim=1)
            for first in range(0, len(self.index), CHUNK)
        ]
        order = torch.cat(gaps).argsort(stable=True)[:count].tolist()
        with open_split(self.folder / "train.h5") as file:
            return np.stack([file["param_array"][i] for i in order])


def evaluate(
    checkpoint: str | Path,
    folder: str | Path,
    targets: list[Target],
    out: str | Path,
    seconds: float = 30.0,
    refined: int | None = None,
    seed: int = 0,
    workers: int = -1,
    **sampling,
) -> pd.DataFrame:
    """Match every target by every system. One row per target and system, with metrics, renders and seconds.

    Args:
        checkpoint: of the model, as `load_model` takes it.
        folder: the dataset it was trained on, for retrieval.
        out: where results are kept, one JSON file per target; what is there and fits is not computed again.
        seconds: one core's time for refining one target.
        refined: only so many targets, the first ones, are refined; all by default.
        workers: targets worked on at a time, each by one process.
        sampling: to `FlowModel.sample`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    dataset = Retrieval(folder, out.parent).digest  # makes the index, before processes share it
    weights = hashlib.sha256(checkpoint_path(checkpoint).read_bytes()).hexdigest()[:12]

    def key(target: Target) -> dict:
        """All that the results for a target depend on, but for the time to refine."""
        sound = hashlib.sha256(target.audio.tobytes()).hexdigest()[:12]
        return {"model": weights, "dataset": dataset, "sound": sound, "seed": seed, **sampling}

    budgets = [seconds if refined is None or i < refined else 0.0 for i in range(len(targets))]
    jobs = []
    for i, target in enumerate(targets):
        kept = _read(out, i)
        if kept.get("key") != key(target) or (budgets[i] and kept.get("seconds") != budgets[i]):
            jobs.append((i, target))
    pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, max_nbytes=None)
    work = pool(
        joblib.delayed(_evaluate_one)(checkpoint, folder, out, i, target, key(target), budgets[i], sampling)
        for i, target in jobs
    )
    for _ in tqdm(work, total=len(jobs), unit="sound", mininterval=10, disable=not jobs):
        pass
    return pd.DataFrame(
        [
            row
            for i, budget in enumerate(budgets)
            for row in _read(out, i)["rows"]
            if budget or row["system"] != REFINED
        ]
    )


def _read(out: Path, index: int) -> dict:
    path = _result(out, index)
    kept = json.loads(path.read_text()) if path.is_file() else {}
    return kept if isinstance(kept, dict) else {}  # an earlier layout had rows alone


def _result(out: Path, index: int) -> Path:
    return out / f"{index:04d}.json"


_loaded: dict[tuple, tuple[Matcher, Retrieval]] = {}  # in a worker: what it has open


def _evaluate_one(checkpoint, folder, out, index, target, key, seconds, sampling) -> None:
    opened = (key["model"], key["dataset"])
    if opened not in _loaded:
        torch.set_num_threads(1)
        _loaded[opened] = (Matcher(load_model(checkpoint), workers=1), Retrieval(folder, out.parent))
    matcher, retrieval = _loaded[opened]
    result = _read(out, index)
    if result.get("key") != key:
        rows, best = _match_by_all(matcher, retrieval, target, [key["seed"], index], sampling)
        result = {"key": key, "seconds": 0.0, "rows": rows, "best": best}
    if seconds and result["seconds"] != seconds:
        rows = [row for row in result["rows"] if row["system"] != REFINED]
        result |= {"seconds": seconds, "rows": [*rows, _refined(matcher, target, result["best"], seconds)]}
    path = _result(out, index)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(result))
    aside.replace(path)


def _row(matcher, target, audio, system, vector, value, renders, start) -> dict:
    """A row of the table; `start` is None if it was not timed alone."""
    elapsed = None if start is None else round(time.perf_counter() - start, 2)
    render = matcher.synth.render(*matcher.space.decode(vector), matcher.space.seconds)[: len(audio)]
    if (
        target.recorded or np.abs(audio).max() > np.abs(target.audio).max()
    ):  # its level means nothing, or was raised
        render = render * gain(audio, render)
    row = {"target": target.name, "system": system, **all_metrics(audio, render)}
    return {**row, "distance": float(value), "renders": renders, "seconds": elapsed}


def _refined(matcher, target, best, seconds) -> dict:
    audio = matcher.prepare_target(target.audio)
    vector, value, renders = np.array(best["vector"], dtype=np.float32), best["distance"], CANDIDATES
    start = time.perf_counter()
    for population, measured in matcher.refine(Distance(audio), vector, start + seconds, best["seed"]):
        renders += len(population)
        if measured.min() < value:
            vector, value = population[measured.argmin()], measured.min()
    return _row(matcher, target, audio, REFINED, vector, value, renders, start)


def _match_by_all(matcher, retrieval, target, seed, sampling) -> tuple[list[dict], dict]:
    """The rows of all systems but the refined one, and where refining is to begin."""
    space, synth = matcher.space, matcher.synth
    audio = matcher.prepare_target(target.audio)
    distance = Distance(audio)
    rng = np.random.default_rng(seed)
    flow_seed = int(rng.integers(2**31))

    def default() -> np.ndarray:
        note = space.note({p.name: p.default for p in space.note_fields})
        return space.encode(space.default_patch, note)[None]

    def at_random(_, vector: np.ndarray, count: int, seed: int) -> np.ndarray:
        edits = np.random.default_rng([flow_seed, seed])
        return np.stack([space.encode(*edit(space, *space.decode(vector), edits)) for _ in range(count)])

    mel = log_mel(torch.from_numpy(audio))
    draws = {
        "default patch": default,
        "best of 32 random": lambda: np.stack([space.encode(*space.sample(rng)) for _ in range(CANDIDATES)]),
        "best of 32 neighbours": lambda: retrieval.nearest(mel, CANDIDATES),
        "flow from noise, best of 32": lambda: matcher.model.sample(
            mel, CANDIDATES, seed=flow_seed, **FROM_NOISE
        ),
    }
    searches = {"random edits, best of 32": {"edit": at_random}, "flow, best of 32": sampling}
    firsts = {
        "best of 32 neighbours": "nearest neighbour",
        "flow from noise, best of 32": "flow, one sample",
    }
    rows = []

    def keep(system: str, vector: np.ndarray, value: float, renders: int, start: float | None) -> None:
        rows.append(_row(matcher, target, audio, system, vector, value, renders, start))

    for system, draw in draws.items():
        start = time.perf_counter()
        vectors = draw()
        values = score(space, synth, distance, vectors)
        best = int(values.argmin())
        keep(system, vectors[best], values[best], len(vectors), start)
        if system in firsts:
            keep(firsts[system], vectors[0], values[0], 1, None)
    for system, how in searches.items():
        start = time.perf_counter()
        _, vectors, values = zip(*matcher.propose(audio, distance, CANDIDATES, flow_seed, **how))
        vectors, values = np.concatenate(vectors), np.concatenate(values)
        best = int(values.argmin())
        keep(system, vectors[best], values[best], len(vectors), start)
    return rows, {"vector": vectors[best].tolist(), "distance": float(values[best]), "seed": flow_seed}


def summary(table: pd.DataFrame, floor: pd.DataFrame | None = None, seed: int = 0) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval of every metric for every system, in the order of `SYSTEMS`.

    `floor`, what `costs.noise_floor` measured, comes last: no system can be expected to come closer.
    """
    rows = []
    if floor is not None:
        table = pd.concat([table, floor.assign(system=FLOOR, renders=1)])
    for system in [*SYSTEMS, FLOOR]:
        part = table[table["system"] == system]
        if len(part):
            cells = {
                name: "{:.2f} [{:.2f}, {:.2f}]" if name in ("MSS", "wMFCC") else "{:.3f} [{:.3f}, {:.3f}]"
                for name in METRICS
            }
            row = {name: cell.format(*bootstrap_mean(part[name], seed)) for name, cell in cells.items()}
            rows.append({"system": system, **row, "renders": round(part["renders"].mean()), "n": len(part)})
    return pd.DataFrame(rows).set_index("system")


def compare(
    table: pd.DataFrame, a: str, b: str, metric: str = "MSS", seed: int = 0
) -> tuple[float, float, float]:
    """Mean over targets of `a` minus `b` with its 95 % bootstrap interval, both measured on the same targets."""
    wide = table.pivot(index="target", columns="system", values=metric)[[a, b]].dropna()
    return paired_difference(wide[a], wide[b], seed)
