"""Render a dataset: parallel, resumable, and the same whatever the number of workers or what was interrupted.

Each shard is rendered by one worker, written aside and renamed when it is complete; a second run renders only the
shards that are missing. The splits show what is there while it is being rendered, so that a training can begin. A
worker that dies takes no more than an unfinished shard with it; a patch that twice crashes its plugin, or hangs it, is
drawn again and noted in the shard's attribute `skipped`.
"""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from synthnb import __version__
from synthnb.data import EDITS, KEEP, SHARD_SIZE, TEST, TRAIN, VAL
from synthnb.data.audibility import audibility
from synthnb.data.draw import sample_clips
from synthnb.data.pool import each
from synthnb.data.shards import (
    SPLITS,
    Column,
    DamagedFile,
    DatasetError,
    pack,
    read_pieces,
    reading,
    shard_lengths,
    shard_path,
)
from synthnb.data.splits import sweep, write_splits, write_stats
from synthnb.features import coarse, log_mel
from synthnb.sound import SAMPLE_RATE
from synthnb.space import LOUDNESS_FLOOR, ParameterSpace
from synthnb.synths import Synth, open_space

CLIPS_PER_BATCH = 32  # drawn, turned into features and written together
SPARE = 8 << 20  # bytes that stay free on the disk
AUDIBLE_PATCHES, AUDIBLE_COST = 40, 10  # the second: renders of a dataset for every one that measures
EVERY = 30.0  # seconds between two looks at what the splits can show


@dataclass(frozen=True)
class Recipe:
    """What decides every number in a dataset; stored in each shard.

    Args:
        space: the space's YAML text.
        seed: of all random draws.
        loudness_floor: in LUFS; a quieter clip is drawn again.
        keep: `audio` keeps it, and the spectrogram (a mono clip of 4 s: 0.46 MB); `mel` the spectrogram alone
            (0.1 MB); `compact` only what an encoder looks at of that (6.4 kB).
        shard_size: clips in a shard.
        edits: of every clip that is drawn from the prior; they follow it.
    """

    space: str
    seed: int = 0
    loudness_floor: float = LOUDNESS_FLOOR
    keep: str = KEEP[0]
    shard_size: int = SHARD_SIZE
    edits: int = EDITS


def write_shard(folder: Path, recipe: Recipe, index: int, length: int) -> None:
    """Render one shard of `length` clips. It has its final name only when it is complete.

    Raises `DatasetError` on a full disk.
    """
    space, synth = open_space(recipe.space)
    path = shard_path(folder, index)
    aside = path.with_suffix(f".partial-{os.getpid()}")
    try:
        _write_shard(aside, space, synth, recipe, index * recipe.shard_size, length)
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)  # a full disk needs the room
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise DatasetError(
                f"the disk of {folder} is full; what is complete stays, and with more room it goes on"
            ) from error
        raise


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
        columns, skipped = {}, []
        for first in range(0, length, CLIPS_PER_BATCH):
            count = min(CLIPS_PER_BATCH, length - first)
            start = begin + first
            indices = range(start, start + count)
            clips = [None] * count
            for clip in sample_clips(
                space, synth, recipe.seed, indices, recipe.loudness_floor, recipe.edits, skipped
            ):
                at = clip.index - start
                sounds[at], clips[at] = clip.audio, clip._replace(audio=None)
            fields = _features(torch.from_numpy(sounds[:count]), recipe.keep) | {
                "param_array": np.stack([space.encode(clip.patch, clip.note) for clip in clips]),
                "attempts": np.array([clip.attempt for clip in clips], np.uint16),
            }
            # HDF5 itself can crash when the disk is full.
            if shutil.disk_usage(aside.parent).free < sum(v.nbytes for v in fields.values()) + SPARE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(aside))
            for name, values in fields.items():
                if name not in columns:
                    columns[name] = Column(file, name, length, values.shape[1:], values.dtype)
                columns[name].append(values)
        for column in columns.values():
            column.finish()
        file.attrs["skipped"] = json.dumps(skipped[:500])  # an attribute holds 64 KB


def _features(sounds: torch.Tensor, keep: str) -> dict[str, np.ndarray]:
    """What is kept of sounds `(n, channels, samples)`."""
    mel = log_mel(sounds)
    if keep == "compact":
        return {"coarse": pack(coarse(mel).numpy())}
    kept = {"mel_spec": mel} | ({"audio": sounds} if keep == "audio" else {})
    return {
        name: values.half().numpy() for name, values in kept.items()
    }  # NumPy's half takes four times as long


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
            with reading(path) as file:
                attributes, clips_in_it = dict(file.attrs), len(file["param_array"])
        except DamagedFile:  # it is rendered again
            missing.append((index, length))
            continue
        for name, value in asdict(recipe).items():
            if str(attributes.get(name)) != str(value):
                old, new = (attributes.get(name), value) if name != "space" else ("another", "this one")
                raise DatasetError(f"{path} was made with {name} = {old}, not {new}; use an empty folder")
        if clips_in_it != length:  # the last shard of a smaller dataset that now grows
            missing.append((index, length))
    return missing


def generate(
    folder: str | Path,
    space: ParameterSpace,
    train: int = TRAIN,
    val: int = VAL,
    test: int = TEST,
    seed: int = Recipe.seed,
    loudness_floor: float = Recipe.loudness_floor,
    keep: str = Recipe.keep,
    shard_size: int = Recipe.shard_size,
    edits: int = Recipe.edits,
    workers: int | str = -1,
    progress: bool = True,
    part: tuple[int, int] = (1, 1),
    audible_patches: int = AUDIBLE_PATCHES,
) -> Path:
    """Render a dataset of `train + val + test` clips into `folder`, or finish one that was interrupted.

    Validation and test clips come first; a training can begin as soon as these and some training clips are there.

    Args:
        folder: created if needed; every file that is complete is kept.
        train, val, test, seed, loudness_floor, keep, shard_size, edits: see `Recipe`.
        workers: processes, each with a synth of its own; -1 takes all cores. Or the address of a dask scheduler
            (`tcp://host:8786`), whose workers see `folder` by the same path.
        progress: show bars that count patches and clips.
        part: `(k, n)` renders the k-th of n equal parts, so that n machines fill one folder, or folders whose shards
            are then put together; who finds all shards there writes the statistics.
        audible_patches: on which it is measured how audible each parameter is, for a training to weight it by; fewer
            in a small dataset, of whose time it takes at most a tenth, and none in a tiny one.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder holds shards made otherwise or is a subset, the space is silent, workers die again
            and again, or the disk is full. What is complete stays, and the same command goes on from there.
    """
    folder = Path(folder)
    splits = dict(zip(SPLITS, (val, test, train)))
    recipe = Recipe(space.text, seed, loudness_floor, keep, shard_size, edits)
    _refuse_impossible(recipe, splits, workers, part)
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_splits(folder)
    (own, parts), clips = part, sum(splits.values())
    lengths = shard_lengths(clips, shard_size)
    todo = [shard for shard in missing_shards(folder, recipe, clips) if shard[0] % parts == own - 1]
    stats = folder / "stats.npz"
    if todo:
        stats.unlink(missing_ok=True)  # it comes last: where it is, the folder is complete
    for index in range(own - 1, len(lengths), parts):
        for leftover in folder.glob(f"{shard_path(folder, index).stem}.partial-*"):
            leftover.unlink()
    sweep(folder)
    patches = min(audible_patches, int(clips / (AUDIBLE_COST * len(list(space)))))

    audible: dict = {}

    def show(measure: bool = False) -> None:
        nonlocal audible
        audible = audible or _read_audible(folder, recipe, patches)
        if measure and patches and not audible:
            found = audibility(space, patches, seed, loudness_floor, workers, progress)
            audible = {"audible": found.to_numpy(np.float32), "audible_patches": patches}
        write_splits(folder, lengths, splits, **audible)

    if todo:
        show(measure=own == 1)
    shown, count = time.monotonic(), sum(lengths[own - 1 :: parts])
    jobs = {shard: (folder, recipe, *shard) for shard in todo}
    with tqdm(total=count, initial=count - sum(n for _, n in todo), unit="clip", disable=not progress) as bar:
        for (_, length), _ in each(write_shard, jobs, workers):
            bar.update(length)
            if time.monotonic() - shown > EVERY:
                show()
                shown = time.monotonic()
    complete = parts == 1 or not missing_shards(folder, recipe, clips)
    if complete and stats.is_file() and _are_shown(folder, recipe, splits, patches):
        return folder
    stats.unlink(missing_ok=True)
    show(measure=complete)
    if complete:
        write_stats(folder)
    return folder


def _read_audible(folder: Path, recipe: Recipe, patches: int) -> dict:
    """What was measured before, on as many patches or more."""
    shown = _shown(folder / "train.h5")
    same = all(
        str(shown.get(name)) == str(getattr(recipe, name)) for name in ("space", "seed", "loudness_floor")
    )
    if not same or shown.get("audible_patches", 0) < patches:
        return {}
    return {name: shown[name] for name in ("audible", "audible_patches") if name in shown}


def _are_shown(folder: Path, recipe: Recipe, splits: dict[str, int], patches: int) -> bool:
    """Whether the splits show all clips, and how audible parameters are."""
    right = all(_shown(folder / f"{split}.h5").get("clips") == count for split, count in splits.items())
    return right and bool(_read_audible(folder, recipe, patches) or not patches)


def _shown(split: Path) -> dict:
    """Attributes of a split, its `clips` and the `files` that hold them; nothing if it is not there or damaged."""
    if not split.is_file():
        return {}
    try:
        with reading(split) as file:
            return {
                **file.attrs,
                "clips": len(file["param_array"]),
                "files": {p.file for p in read_pieces(file)},
            }
    except DamagedFile:  # it is made again
        return {}


def _refuse_impossible(
    recipe: Recipe, splits: dict[str, int], workers: int | str, part: tuple[int, int]
) -> None:
    (own, parts), family, size = part, 1 + recipe.edits, recipe.shard_size
    if splits["train"] < 1 or min(splits.values()) < 0 or size < 1:
        raise DatasetError(f"{splits} clips in shards of {size}: at least one training clip is needed")
    if family < 1 or any(count % family for count in (*splits.values(), size)):
        raise DatasetError(
            f"{splits} clips with {recipe.edits} edits each in shards of {size}: all must be multiples of {family}"
        )
    if recipe.keep not in KEEP:
        raise DatasetError(f"keep {recipe.keep}: it is one of {', '.join(KEEP)}")
    if recipe.seed < 0:
        raise DatasetError(f"seed {recipe.seed}: it is 0 or more")
    if workers == 0:
        raise DatasetError("0 workers render nothing; -1 takes all cores")
    if not 1 <= own <= parts:
        raise DatasetError(f"part {own} of {parts}: the first is 1, the last {parts}")


def _refuse_other_splits(folder: Path) -> None:
    """Raise `DatasetError` if a split shows clips that `generate` did not render here: it would be overwritten."""
    for path in (folder / f"{split}.h5" for split in SPLITS):
        for name in _shown(path).get("files", ()):
            if not re.fullmatch(r"shard-\d{5,}\.h5", name):
                raise DatasetError(
                    f"{path} shows clips of {name}, which were not generated into this folder (a subset, or another "
                    "tool's dataset); use an empty folder"
                )
