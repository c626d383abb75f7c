"""Measure a model against its baselines: same targets, same ranking, same number of renders, in one run.

Every target is matched by every system of `SYSTEMS`; what a system keeps is its candidate with the smallest
`HeardDistance`, and all four metrics are taken of that. Results are written per target, with what they depend on, so
that an interrupted evaluation goes on where it stopped and one with another model, search or settings starts afresh.
"""

from __future__ import annotations

import ast
import hashlib
import json
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from synthnb import __version__
from synthnb.data.library import cells, nearest
from synthnb.data.rows import Rows
from synthnb.data.shards import open_split, pack, unpack
from synthnb.evaluate.targets import Target
from synthnb.features import coarse, log_mel
from synthnb.metrics import all_metrics
from synthnb.models.checkpoint import checkpoint_path, load_model
from synthnb.search.distance import HeardDistance
from synthnb.search.match import gain
from synthnb.search.matcher import Matcher
from synthnb.search.moves import FLOW, FROM_NOISE, MOVES

CANDIDATES = 32
SYSTEMS = {
    "default patch": "the synth's initial patch",
    "best of 32 random": "patches drawn from the prior",
    "nearest neighbour": "the training clip that sounds most like the target",
    "best of 32 neighbours": "the 32 that sound most like it",
    "flow, one sample": "the flow's first, from noise",
    "flow from noise, best of 32": "32 of those",
    "search without the flow, 32": "8 of the model's library, in key, then all moves that don't ask the model",
    "search, 32": "the same with the flow's moves: how a match begins",
    "search": "a match, as long as it may last",
}
LONGEST = "search"
CHUNK = 4096  # training clips at once
#: The code that decides what is found and how it is measured.
CODE = ("data/library.py", "evaluate/run.py", "features/*.py", "metrics.py", "models/**/*.py", "pitch.py",
        "search/*.py")  # fmt: skip


class Retrieval:
    """Nearest neighbours among all training clips, by their spectrograms' `cells`.

    The index, uint8 `(clips, cells)`, is made once for a dataset and kept in `cache`.
    """

    def __init__(self, folder: str | Path, cache: str | Path):
        path = Path(folder) / "train.h5"
        with open_split(path) as file:
            vectors = file["param_array"]
            text = vectors[:64].tobytes() + str(vectors.shape).encode()
        self.digest = _digest(text)
        kept = Path(cache) / f"cells-{self.digest}.npy"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            sounds = (torch.from_numpy(unpack(codes)) for (codes,) in Rows(path, ["coarse"]).stream(CHUNK))
            aside = kept.with_suffix(".partial.npy")
            np.save(aside, np.concatenate([pack(cells(sound).numpy()) for sound in sounds]))
            aside.replace(kept)
        self.index, self.vectors = np.load(kept, mmap_mode="r"), Rows(path, ["param_array"])

    def nearest(self, mel: torch.Tensor, count: int) -> np.ndarray:
        """Vectors `(count, width)` of the training clips nearest to a spectrogram `(channels, bands, frames)`."""
        parts = (
            torch.from_numpy(unpack(part))
            for part in np.array_split(self.index, len(self.index) // CHUNK + 1)
        )
        return self.vectors[nearest(parts, cells(coarse(mel[None])), count, order=1)]["param_array"]


def evaluate(
    checkpoint: str | Path,
    folder: str | Path,
    targets: list[Target],
    out: str | Path,
    renders: int = 1000,
    seconds: float = 0.0,
    searched: int | None = None,
    seed: int = 0,
    workers: int = -1,
    guidance: float | None = None,
) -> pd.DataFrame:
    """Match every target by every system. One row per target and system, with metrics, renders and seconds.

    Args:
        checkpoint: of the model, as `load_model` takes it.
        folder: the dataset it was trained on, for retrieval.
        out: where results are kept, one JSON file per target; what is there and fits is not computed again.
        renders: to search for one target.
        seconds: if more than 0, of one core, to search for so long instead; a result then depends on the machine.
        searched: only so many targets, the first ones, are searched for that long, the others with 32 renders; all by
            default.
        workers: targets worked on at a time, each by one process, on the CPU; 1 stays in this process and on its GPU.
        guidance: see `Matcher.match`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    depends = {
        "model": _digest(checkpoint_path(checkpoint).read_bytes()),
        "dataset": Retrieval(folder, out.parent).digest,  # makes the index, before processes share it
        "code": code_digest(),
        "seed": seed,
        "guidance": guidance,
    }
    keys = [{**depends, "sound": _digest(target.audio.tobytes())} for target in targets]
    budget, none = {"seconds": seconds} if seconds else {"renders": renders}, {"renders": CANDIDATES}
    budgets = [budget if searched is None or i < searched else none for i in range(len(targets))]
    jobs = []
    for i, target in enumerate(targets):
        kept = _read(out, i)
        if kept.get("key") != keys[i] or kept["budget"] != budgets[i] != none:
            jobs.append((checkpoint, folder, out, i, target, keys[i], budgets[i], guidance, workers != 1))
    pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, max_nbytes=None)
    work = pool(joblib.delayed(_evaluate_one)(*job) for job in jobs)
    for _ in tqdm(work, total=len(jobs), unit="sound", mininterval=10, disable=not jobs):
        pass
    return pd.DataFrame(
        [
            row
            for i, budget in enumerate(budgets)
            for row in _read(out, i)["rows"]
            if budget != none or row["system"] != LONGEST
        ]
    )


def code_digest(root: Path = Path(__file__).parents[1]) -> str:
    """What changes with the code of the search and the metrics; comments and layout do not count."""
    files = [file for pattern in CODE for file in sorted(root.glob(pattern))]
    trees = [ast.dump(ast.parse(file.read_bytes())) for file in files]
    return _digest("\n".join([__version__, *trees]).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _read(out: Path, index: int) -> dict:
    path = _result(out, index)
    return json.loads(path.read_text()) if path.is_file() else {}


def _result(out: Path, index: int) -> Path:
    return out / f"{index:04d}.json"


_loaded: dict[tuple, tuple[Matcher, Retrieval]] = {}  # in a worker: what it has open


def _evaluate_one(checkpoint, folder, out, index, target, key, budget, guidance, in_worker) -> None:
    opened = (key["model"], key["dataset"])
    if opened not in _loaded:
        if in_worker:
            torch.set_num_threads(1)
        model = load_model(checkpoint, "cpu" if in_worker else "auto")
        _loaded[opened] = (Matcher(model, workers=1), Retrieval(folder, out.parent))
    rows = _match_by_all(*_loaded[opened], target, [key["seed"], index], budget, guidance)
    path = _result(out, index)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps({"key": key, "budget": budget, "rows": rows}))
    aside.replace(path)


def _match_by_all(matcher, retrieval, target, seed, budget, guidance) -> list[dict]:
    """The rows of all systems; of the longest only if the budget allows more than the others have."""
    space, player = matcher.space, matcher.player
    audio = matcher.prepare_target(target.audio)
    distance, mel = HeardDistance(audio), log_mel(torch.from_numpy(audio))
    raised = np.abs(audio).max() > np.abs(target.audio).max()
    rng = np.random.default_rng(seed)
    flow_seed = int(rng.integers(2**31))
    rows = []

    def keep(
        system: str, heard: np.ndarray, value: float, renders: int, seconds: float | None = None
    ) -> None:
        """Add a row; what was not timed alone has no seconds."""
        if target.recorded or raised:  # its level means nothing
            heard = heard * gain(audio, heard)
        row = {"target": target.name, "system": system, **all_metrics(audio, heard), "distance": float(value)}
        rows.append({**row, "renders": renders, "seconds": seconds and round(seconds, 2)})

    def keep_best(system: str, vectors: np.ndarray, values: np.ndarray, start: float | None) -> None:
        best, seconds = int(values.argmin()), start and time.perf_counter() - start
        keep(system, player.render(vectors[best]), values[best], len(vectors), seconds)

    def default() -> np.ndarray:
        note = space.note({p.name: p.default for p in space.note_fields})
        return space.encode(space.default_patch, note)[None]

    draws = {
        "default patch": default,
        "best of 32 random": lambda: np.stack([space.encode(*space.sample(rng)) for _ in range(CANDIDATES)]),
        "best of 32 neighbours": lambda: retrieval.nearest(mel, CANDIDATES),
        "flow from noise, best of 32": lambda: matcher.model.sample(
            mel, CANDIDATES, seed=flow_seed, **FROM_NOISE
        ),
    }
    firsts = {"best of 32 neighbours": "nearest neighbour", "flow from noise, best of 32": "flow, one sample"}
    for system, draw in draws.items():
        start = time.perf_counter()
        vectors = draw()
        values = player.score(distance, vectors)
        keep_best(system, vectors, values, start)
        if system in firsts:
            keep_best(firsts[system], vectors[:1], values[:1], None)
    without = [name for name in MOVES if name not in FLOW]
    begin = {"renders": CANDIDATES, "seed": flow_seed, "guidance": guidance}
    for system, moves in {"search without the flow, 32": without, "search, 32": MOVES}.items():
        found = matcher.match(target.audio, moves=moves, **begin)
        keep(system, found.best.audio, found.best.distance, found.state.renders, found.seconds)
    if budget != {"renders": CANDIDATES}:
        spent = {"seconds": found.seconds, "renders": CANDIDATES}
        matcher.go_on(found, **{unit: max(0, most - spent[unit]) for unit, most in budget.items()})
        keep(LONGEST, found.best.audio, found.best.distance, found.state.renders, found.seconds)
    return rows
