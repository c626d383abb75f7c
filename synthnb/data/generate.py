"""Render a dataset: parallel, resumable, and the same whatever the number of workers or what was interrupted.

Clip `i` depends on `(space, seed, i)` alone; clips may come in families, one drawn from the prior and the next ones
edits of it. Each shard is rendered by one worker, written aside and renamed when it is complete; a second run renders
only the shards that are missing. A worker that dies takes no more than an unfinished shard with it; a patch that
twice crashes its plugin, or hangs it, is drawn again and noted in the shard's attribute `skipped`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import joblib
import numpy as np
import torch
from tqdm import tqdm

from synthnb import __version__
from synthnb.data.shards import (
    SPLITS,
    UNREADABLE,
    DatasetError,
    read_pieces,
    shard_lengths,
    shard_path,
    sweep,
    write_splits,
    write_stats,
)
from synthnb.features import log_mel
from synthnb.sound import SAMPLE_RATE, is_as_loud_as
from synthnb.space import Note, ParameterSpace, Patch
from synthnb.space.edits import edit
from synthnb.synths import Synth, SynthCrash, open_space

ATTEMPTS = 1000  # patches drawn for one clip before the space is declared silent
CLIPS_PER_BATCH = 32  # drawn, turned into features and written together
CRASHES = 2  # of a synth at one patch, before that is skipped
KILLS = 20  # of a synth at one patch, from outside, before it is no accident
SPARE = 8 << 20  # bytes that stay free on the disk
DEATHS = 5  # of workers in a row, without a shard between them, before generating gives up

Skipped = list[tuple[int, int, str]]  # clip, attempt, what happened


@dataclass(frozen=True)
class Recipe:
    """What decides every number in a dataset; stored in each shard.

    Args:
        space: the space's YAML text.
        seed: of all random draws.
        loudness_floor: in LUFS; a quieter clip is drawn again.
        keep_audio: store the audio beside the features (0.35 MB a mono clip of 4 s); it can be rendered again.
        shard_size: clips in a shard.
        edits: of every clip that is drawn from the prior; they follow it.
    """

    space: str
    seed: int = 0
    loudness_floor: float = -55.0
    keep_audio: bool = True
    shard_size: int = 500
    edits: int = 0


def sample_clip(
    space: ParameterSpace, synth: Synth, seed: int, index: int, loudness_floor: float, edits: int = 0
) -> tuple[Patch, Note, np.ndarray]:
    """Clip `index`: draw patches until one is loud enough. Returns patch, note and audio `(channels, samples)`."""
    return next(sample_clips(space, synth, seed, [index], loudness_floor, edits))[1:]


def sample_clips(
    space: ParameterSpace,
    synth: Synth,
    seed: int,
    indices: Sequence[int],
    loudness_floor: float,
    edits: int = 0,
    skipped: Skipped | None = None,
) -> Iterator[tuple[int, Patch, Note, np.ndarray]]:
    """`sample_clip` of many, each with its index; edits, and those of which a patch was refused, come later.

    Patches that the synth can't play without crashing are refused like silent ones, and added to `skipped`.
    """
    skipped = [] if skipped is None else skipped
    family = 1 + edits
    firsts: dict[int, tuple[Patch, Note]] = {}

    def draw(index: int, attempt: int) -> tuple[Patch, Note]:
        return space.sample(np.random.default_rng([seed, index // family, attempt]))

    def change(index: int, attempt: int) -> tuple[Patch, Note]:
        rng = np.random.default_rng([seed, index // family, attempt, index % family])
        return edit(space, *firsts[index // family], rng)

    firsts_of = sorted({i - i % family for i in indices})
    for clip in _play(space, synth, draw, firsts_of, loudness_floor, skipped):
        index, patch, note, _ = clip
        if edits:
            firsts[index // family] = patch, note
        if index in indices:
            yield clip
    yield from _play(space, synth, change, [i for i in indices if i % family], loudness_floor, skipped)


def _play(
    space: ParameterSpace,
    synth: Synth,
    draw: Callable[[int, int], tuple[Patch, Note]],
    indices: Sequence[int],
    loudness_floor: float,
    skipped: Skipped,
) -> Iterator[tuple[int, Patch, Note, np.ndarray]]:
    """Draw a patch for every index, again and again until it is loud enough."""
    for attempt in range(ATTEMPTS):
        # All are drawn before any is played: the same work again and again finds its code and data in the cache.
        drawn = [(index, *draw(index, attempt)) for index in indices]
        indices = []
        for index, patch, note in drawn:
            if synth.ceiling(patch, note) < loudness_floor:
                indices.append(index)
                continue
            try:
                audio = _render(synth, patch, note, space.seconds)[: synth.channels]
            except SynthCrash as error:
                skipped.append(
                    (index, attempt, str(error).partition(": ")[0])
                )  # its last words may name paths
                indices.append(index)
                continue
            if is_as_loud_as(audio, loudness_floor):
                yield index, patch, note, audio
            else:
                indices.append(index)
        if not indices:
            return
    raise DatasetError(
        f"clip {indices[0]}: {ATTEMPTS} patches of space '{space.name}' in a row were below {loudness_floor} LUFS; "
        "widen its prior or lower the loudness floor"
    )


def _render(synth: Synth, patch: Patch, note: Note, seconds: float) -> np.ndarray:
    """`synth.render`, again in a fresh process if that crashed. Raises `SynthCrash` if it is the patch."""
    crashes = kills = 0
    while True:
        try:
            return synth.render(patch, note, seconds)
        except SynthCrash as error:
            kills, crashes = kills + error.killed, crashes + (not error.killed)
            if crashes == CRASHES or kills == KILLS:
                raise


def write_shard(folder: Path, recipe: Recipe, index: int, length: int) -> Path:
    """Render one shard of `length` clips. It has its final name only when it is complete. Raises `OSError`."""
    space, synth = open_space(recipe.space)
    path = shard_path(folder, index)
    aside = path.with_suffix(f".partial-{os.getpid()}")
    try:
        _write_shard(aside, space, synth, recipe, index * recipe.shard_size, length)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)  # a full disk needs the room
        raise
    return path


def _write_shard(
    aside: Path, space: ParameterSpace, synth: Synth, recipe: Recipe, begin: int, length: int
) -> None:
    # Used again for each batch: new memory costs time.
    sounds = np.zeros((CLIPS_PER_BATCH, synth.channels, round(space.seconds * SAMPLE_RATE)), dtype=np.float32)
    with h5py.File(aside, "w") as file:
        file.attrs.update(
            asdict(recipe), space_name=space.name, sample_rate=SAMPLE_RATE, seconds=space.seconds
        )
        file.attrs.update(velocity=space.velocity, versions=_versions())
        datasets, skipped = {}, []
        for first in range(0, length, CLIPS_PER_BATCH):
            count = min(CLIPS_PER_BATCH, length - first)
            start = begin + first
            indices = range(start, start + count)
            played = {}
            clips = sample_clips(
                space, synth, recipe.seed, indices, recipe.loudness_floor, recipe.edits, skipped
            )
            for i, patch, note, audio in clips:
                played[i] = patch, note
                sounds[i - start] = audio
            heard = torch.from_numpy(sounds[:count])
            fields = {
                "param_array": np.stack([space.encode(*played[i]) for i in indices]),
                "mel_spec": log_mel(heard).half().numpy(),
            }
            if recipe.keep_audio:
                fields["audio"] = heard.half().numpy()  # numpy's own conversion takes four times as long
            # HDF5 itself can crash when the disk is full.
            if shutil.disk_usage(aside.parent).free < sum(v.nbytes for v in fields.values()) + SPARE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(aside))
            for name, values in fields.items():
                if name not in datasets:
                    datasets[name] = _create(file, name, (length, *values.shape[1:]), values.dtype)
                datasets[name][first : first + count] = values
        file.attrs["skipped"] = json.dumps(skipped[:500])  # an attribute holds 64 KB


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """A dataset with checksums, in chunks of one sound or spectrogram, or of all vectors."""
    chunk = shape if len(shape) == 2 else (1, *shape[1:])
    return file.create_dataset(name, shape, dtype, chunks=chunk, fletcher32=True)


@functools.cache
def _versions() -> str:
    packages = ("dexed-py", "pedalboard", "torch", "librosa", "numpy")
    versions = {"synthnb": __version__, **{name: importlib.metadata.version(name) for name in packages}}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def missing_shards(folder: Path, recipe: Recipe, clips: int) -> list[tuple[int, int]]:
    """`(index, length)` of the shards still to be rendered.

    Raises `DatasetError`, naming the difference, if the folder holds shards of another recipe.
    """
    missing = []
    for index, length in enumerate(shard_lengths(clips, recipe.shard_size)):
        path = shard_path(folder, index)
        if not path.is_file():
            missing.append((index, length))
            continue
        try:
            with h5py.File(path, "r") as file:
                attributes, clips_in_it = dict(file.attrs), len(file["param_array"])
        except UNREADABLE:  # damaged; it is rendered again
            missing.append((index, length))
            continue
        for name, value in asdict(recipe).items():
            if attributes.get(name) != value:
                old, new = (attributes.get(name), value) if name != "space" else ("another", "this one")
                raise DatasetError(f"{path} was made with {name} = {old}, not {new}; use an empty folder")
        if clips_in_it != length:  # the last shard of a smaller dataset that now grows
            missing.append((index, length))
    return missing


def generate(
    folder: str | Path,
    space: ParameterSpace,
    train: int,
    val: int = 0,
    test: int = 0,
    seed: int = 0,
    loudness_floor: float = -55.0,
    keep_audio: bool = True,
    shard_size: int = 500,
    edits: int = 0,
    workers: int | str = -1,
    progress: bool = True,
    part: tuple[int, int] = (1, 1),
) -> Path:
    """Render a dataset of `train + val + test` clips into `folder`, or finish one that was interrupted.

    Args:
        folder: created if needed; every file that is complete is kept.
        train, val, test, seed, loudness_floor, keep_audio, shard_size, edits: see `Recipe`.
        workers: processes, each with a synth of its own; -1 takes all cores. Or the address of a dask scheduler
            (`tcp://host:8786`), whose workers see `folder` by the same path.
        progress: show a bar that counts clips.
        part: `(k, n)` renders the k-th of n equal parts, so that n machines fill one folder, or folders whose shards
            are then put together; who finds all shards there writes the splits.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder holds shards made otherwise or is a subset, the space is silent, workers die again
            and again, or the disk is full. What is complete stays, and the same command goes on from there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = dict(zip(SPLITS, (val, test, train)))
    clips = sum(splits.values())
    if train < 1 or min(splits.values()) < 0 or shard_size < 1:
        raise DatasetError(f"{splits} clips in shards of {shard_size}: at least one training clip is needed")
    if edits < 0 or any(count % (1 + edits) for count in splits.values()):
        raise DatasetError(f"{splits} clips with {edits} edits each: all must be multiples of {1 + edits}")
    own, parts = part
    if not 1 <= own <= parts:
        raise DatasetError(f"part {own} of {parts}: the first is 1, the last {parts}")
    _refuse_other_splits(folder)
    recipe = Recipe(space.text, seed, loudness_floor, keep_audio, shard_size, edits)
    todo = [shard for shard in missing_shards(folder, recipe, clips) if shard[0] % parts == own - 1]
    stats = folder / "stats.npz"
    if todo:
        stats.unlink(missing_ok=True)  # it comes last: where it is, the folder is complete
    for index in range(own - 1, len(shard_lengths(clips, shard_size)), parts):
        for leftover in folder.glob(f"{shard_path(folder, index).stem}.partial-*"):
            leftover.unlink()
    sweep(folder)
    count = sum(shard_lengths(clips, shard_size)[own - 1 :: parts])
    with tqdm(total=count, initial=count - sum(n for _, n in todo), unit="clip", disable=not progress) as bar:
        for length in _render_shards(folder, recipe, todo, workers):
            bar.update(length)
    if parts > 1 and missing_shards(folder, recipe, clips):
        return folder
    if not stats.is_file() or not _splits_are(folder, splits):
        stats.unlink(missing_ok=True)
        write_splits(folder, shard_lengths(clips, shard_size), splits)
        write_stats(folder)
    return folder


def _refuse_other_splits(folder: Path) -> None:
    """Raise `DatasetError` if a split shows clips that `generate` did not render here: it would be overwritten."""
    for path in (folder / f"{split}.h5" for split in SPLITS):
        try:
            with h5py.File(path, "r") as file:
                files = [piece.file for piece in read_pieces(file)]
        except DatasetError:
            raise
        except UNREADABLE:  # not there yet, or damaged; it is made again
            continue
        for name in files:
            if not re.fullmatch(r"shard-\d{5,}\.h5", name):
                raise DatasetError(
                    f"{path} shows clips of {name}, which were not generated into this folder (a subset, or another "
                    "tool's dataset); use an empty folder"
                )


def _render_shards(
    folder: Path, recipe: Recipe, todo: list[tuple[int, int]], workers: int | str
) -> Iterator[int]:
    """Render shards in parallel, and once more those that a dying worker has left; yields their lengths."""

    def one(index: int, length: int) -> int:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # workers share the cores; a single worker is this process
        try:
            write_shard(folder, recipe, index, length)
        except OSError as error:
            raise _in_words(folder, error) from error
        finally:
            torch.set_num_threads(threads)
        return index

    lengths, deaths = dict(todo), 0
    with _backend(workers) as (jobs, died):
        while lengths:
            pool = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
            try:
                for index in pool(joblib.delayed(one)(*shard) for shard in list(lengths.items())):
                    deaths = 0
                    yield lengths.pop(index)
            except died as error:
                deaths += 1
                if deaths == DEATHS:
                    raise DatasetError(
                        f"workers died {DEATHS} times in a row ({str(error).splitlines()[0]}); is there memory for "
                        f"{jobs} of them? What is complete in {folder} stays"
                    ) from error


@contextlib.contextmanager
def _backend(workers: int | str) -> Iterator[tuple[int, tuple[type[Exception], ...]]]:
    """How joblib runs jobs: how many at a time, and what is raised when a worker dies."""
    if not isinstance(workers, str):
        yield workers, (BrokenProcessPool,)
        return
    import distributed

    try:
        client = distributed.Client(workers, timeout=30)
    except (OSError, ValueError) as error:
        raise DatasetError(f"no dask scheduler answers at {workers}: {error}") from error
    with client, joblib.parallel_config("dask"):
        yield -1, (distributed.KilledWorker, distributed.comm.CommClosedError)


def _in_words(folder: Path, error: OSError) -> Exception:
    if error.errno != errno.ENOSPC:
        return error
    return DatasetError(
        f"the disk of {folder} is full; what is complete stays, and with more room it goes on"
    )


def _splits_are(folder: Path, splits: dict[str, int]) -> bool:
    try:
        for split, count in splits.items():
            with h5py.File(folder / f"{split}.h5", "r") as file:
                if len(file["param_array"]) != count:
                    return False
    except UNREADABLE:
        return False
    return True
