"""How fast and how large datasets are made, checked and fed to a training, against what limits them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import h5py
import joblib
import numpy as np
import pandas as pd
import psutil

from synthnb.data.draw import draw
from synthnb.data.feed import Batch, ClipData, unpacked
from synthnb.data.generate import Recipe, generate
from synthnb.data.rows import SEEN, compact_copy
from synthnb.data.shards import (
    SPLITS,
    Column,
    find_source,
    open_split,
    read_pieces,
    shard_lengths,
    shard_path,
)
from synthnb.data.splits import stats_of, write_splits, write_stats
from synthnb.features import BANDS, HOP, coarse, log_mel
from synthnb.sound import SAMPLE_RATE
from synthnb.space import ParameterSpace
from synthnb.synths import open_space

POLL = 0.1  # seconds between two looks at the memory, in the end; more often at first
BLOCK = 1 << 20  # bytes read at once


class Measured(NamedTuple):
    """What a function returned, after how many seconds, with how much memory (MB) at most."""

    result: object
    seconds: float
    memory: float


def measure(function: Callable, *arguments, **settings) -> Measured:
    """Call a function of a module in a fresh process, and look at the memory of it and of all that it starts.

    That is what the processes hold themselves: mapped files, which the system can drop, don't count on Linux.
    """
    context, peak = multiprocessing.get_context("spawn"), 0
    answer, sender = context.Pipe(duplex=False)
    child = context.Process(target=_timed, args=(sender, function, arguments, settings))
    child.start()
    sender.close()  # the child's alone, so that its death is noticed
    process = psutil.Process(child.pid)
    try:
        started = time.perf_counter()
        while not answer.poll(min(POLL, 0.005 + (time.perf_counter() - started) / 20)):
            peak = max(peak, _memory(process))
        result, seconds = pickle.loads(answer.recv_bytes())
    except EOFError:
        raise RuntimeError(f"{function.__name__} ended its process") from None
    finally:
        # Not by itself: joblib's idle workers would be waited for.
        for one in [*process.children(recursive=True), process]:
            one.kill()
        child.join()
    if isinstance(result, Exception):
        raise result
    return Measured(result, seconds, peak / 1e6)


def _timed(sender, function: Callable, arguments: tuple, settings: dict) -> None:
    start = time.perf_counter()
    try:
        result = function(*arguments, **settings)
    except Exception as error:
        result = error
    # As bytes: a tensor would stay in this process, which ends.
    sender.send_bytes(pickle.dumps((result, time.perf_counter() - start)))


def _memory(process: psutil.Process) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):  # one that has just ended
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                info = one.memory_info()
                total += info.rss - getattr(info, "shared", 0)
    return total


def engine_rate(space: ParameterSpace, clips: int, seed: int = 0, workers: int = 1) -> float:
    """Clips a second and core that the bare engine plays, `clips` of them on each of `workers` cores at once."""
    each = joblib.Parallel(workers, batch_size=1)(
        joblib.delayed(_play)(space.text, seed, core * clips, clips) for core in range(workers)
    )
    return clips / float(np.mean(each))


def _play(text: str, seed: int, first: int, count: int) -> float:
    space, synth = open_space(text)
    drawn = [space.sample(np.random.default_rng([seed, first + i, 0])) for i in range(count)]
    synth.engine_seconds(*drawn[0], space.seconds)  # the first one warms everything up
    return sum(synth.engine_seconds(patch, note, space.seconds) for patch, note in drawn)


def generate_timed(
    folder: Path, text: str, clips: int, workers: int, dask: bool = False, **settings
) -> float:
    """Render `clips` training clips on joblib's workers or a local dask cluster; seconds, once all have started."""
    space, quiet = ParameterSpace.parse(text), {"progress": False, **settings}
    with contextlib.ExitStack() as stack:
        where: int | str = workers
        if dask:
            from distributed import LocalCluster

            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, memory_limit=0
            )
            where = stack.enter_context(cluster).scheduler_address
        warm = stack.enter_context(tempfile.TemporaryDirectory())
        generate(warm, space, 8 * workers, workers=where, **{**quiet, "shard_size": 4})
        start = time.perf_counter()
        generate(folder, space, clips, workers=where, **quiet)
        return time.perf_counter() - start


def count_statistics(folder: Path) -> None:
    """The pass that `generate` makes at its end."""
    stats_of(folder)


def random_clips(
    folder: str | Path, space: ParameterSpace, clips: int, seed: int = 0, channels: int = 2
) -> Path:
    """A compact dataset of random pictures in place of sounds, to measure feeding with where the synth is missing."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(space.text, seed, keep="compact", shard_size=1000, edits=1)
    lengths = shard_lengths(clips, recipe.shard_size)
    frames = (1 + round(space.seconds * SAMPLE_RATE) // HOP) // 4
    for index, length in enumerate(lengths):
        drawn = [draw(space, seed, *divmod(index * recipe.shard_size + i, 2)) for i in range(length)]
        fields = {
            "coarse": rng.integers(0, 256, (length, channels, BANDS // 2, frames), np.uint8),
            "param_array": np.stack([space.encode(*clip) for clip in drawn]),
            "attempts": np.zeros(length, np.uint16),
        }
        with h5py.File(shard_path(folder, index), "w") as file:
            file.attrs.update(asdict(recipe))
            for name, values in fields.items():
                column = Column(file, name, length, values.shape[1:], values.dtype)
                column.append(values)
                column.finish()
    write_splits(folder, lengths, dict(zip(SPLITS, (0, 0, clips))))
    write_stats(folder)
    return folder


def hear(batch: Batch) -> Batch:
    """The coarse spectrogram of a batch's audio, in place of the stored one."""
    return batch | {"mel": coarse(log_mel(batch["audio"].float()))}


#: What a training may take: fields beside what an encoder looks at, and what is computed of them.
DIETS = {
    "coarse": ((), None),
    "and mel_spec": (("mel_spec",), None),
    "and audio": (("audio",), None),
    "and audio, mel on the fly": (("audio",), hear),
}


def feeding(
    folder: str | Path, batch_size: int = 128, workers: int = 0, seconds: float = 5.0
) -> pd.DataFrame:
    """Clips a second that `ClipData` gives a training, from the page cache and from disk.

    Returns:
        A row for each of `DIETS` that the dataset has: `cached` and `disk`, clips a second; `raw cached` and `raw
        disk`, what a plain sequential read of the fields' bytes (of none: the vectors' and coarse spectrograms') gives,
        without any look at them. Disk is NaN where the system can't be told to forget what it read.
    """
    folder, rows = Path(folder), {}
    with open_split(folder / "train.h5") as file:
        diets = {name: diet for name, diet in DIETS.items() if {*diet[0]} <= {*file}}
    for name, (fields, transform) in diets.items():
        data = ClipData(folder, batch_size, workers, fields=fields, transform=transform)
        read = {}
        for place in ("cached", "disk"):
            forgotten = place == "cached" or _forget(folder, fields)
            raw = _raw_rate(folder, fields, seconds) if forgotten else np.nan
            if place == "cached":  # once more: the first time was from disk, or partly
                raw = _raw_rate(folder, fields, seconds)
            else:
                _forget(folder, fields)
            read[place] = _rate(data, seconds) if forgotten else np.nan
            read[f"raw {place}"] = raw
        rows[name] = read
    return pd.DataFrame(rows).T


def _rate(data: ClipData, seconds: float) -> float:
    batches = iter(data.train_dataloader())
    next(batches)
    clips, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        clips += len(unpacked(next(batches))["mel"])
    return clips / spent


def _extents(folder: Path, fields: tuple[str, ...]) -> Iterator[tuple[Path, list[tuple[int, int]], float]]:
    """Files, where in them the bytes of `fields` are (of none: of `SEEN`), and how many clips that makes."""
    path = folder / "train.h5"
    with open_split(path) as file:
        pieces, compact = read_pieces(file), "coarse" in file
    for piece in pieces:
        source = find_source(path, piece.file)
        source = source if fields or compact else compact_copy(source)
        with h5py.File(source, "r") as shard:
            extents = sorted((shard[name].id.get_offset(), shard[name].nbytes) for name in fields or SEEN)
        yield source, extents, piece.length


def _raw_rate(folder: Path, fields: tuple[str, ...], seconds: float) -> float:
    """Clips a second of reading bytes alone, for at most so many seconds."""
    clips, start = 0.0, time.perf_counter()
    for path, extents, held in _extents(folder, fields):
        size, taken = sum(length for _, length in extents), 0
        with open(path, "rb", buffering=0) as file:
            buffer = memoryview(bytearray(BLOCK))
            for offset, length in extents:
                file.seek(offset)
                while length > 0:
                    count = file.readinto(buffer[: min(BLOCK, length)])
                    length, taken = length - count, taken + count
                if time.perf_counter() - start > seconds:
                    break
        clips += held * taken / size
        if time.perf_counter() - start > seconds:
            break
    return clips / (time.perf_counter() - start)


def _forget(folder: Path, fields: tuple[str, ...]) -> bool:
    """Have the system drop its copies of a dataset's files; whether it can be told to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in {path for diet in ((), fields) for path, *_ in _extents(folder, diet)}:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
