"""The HDF5 layout of a dataset folder.

`shard-00000.h5 …` hold consecutive clips: `param_array (n, width) float32`, `mel_spec (n, channels, 128, frames)
float16` and, if kept, `audio (n, channels, samples) float16`; `featurize` adds `music2latent (n, channels * 64, frames)
float16`. Attributes say how they were made. With `edits` = k among them, every (k + 1)th clip was drawn from the prior,
and the k after it are edits of it. `val.h5`, `test.h5` and `train.h5` are virtual datasets over the shards, with
relative paths, so that a folder can be moved; `stats.npz` holds `mean` and `std` of the training clips' `mel_spec`,
each `(channels, 128, frames)`. Names and shapes follow the synth-permutations datasets.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

FIELDS = ("audio", "mel_spec", "music2latent", "param_array")
SPLITS = ("val", "test", "train")  # in the order of the clips: a dataset can grow and keep its test clips


class DatasetError(RuntimeError):
    """A dataset folder that is missing, incomplete or made otherwise; the message says what and what to do."""


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` of a dataset lies."""
    return folder / f"shard-{index:05d}.h5"


def shard_lengths(clips: int, shard_size: int) -> list[int]:
    """How many clips each shard holds: all `shard_size`, the last the rest."""
    return [min(shard_size, clips - first) for first in range(0, clips, shard_size)]


def write_splits(folder: Path, lengths: list[int], splits: dict[str, int]) -> None:
    """Write `val.h5`, `test.h5`, `train.h5`: virtual datasets over shards of the given `lengths`.

    `splits` says how many clips each takes, in the order of `SPLITS`, from the first clip on. A field that one of the
    shards lacks (a feature was added, then the dataset grew) is left out: HDF5 would read zeros there.
    """
    edges = np.concatenate([[0], np.cumsum(lengths)])
    everywhere = set(FIELDS)
    for index in range(len(lengths)):
        with h5py.File(shard_path(folder, index), "r") as shard:
            everywhere &= set(shard)
    with h5py.File(shard_path(folder, 0), "r") as shard:
        shapes = {name: (shard[name].shape[1:], shard[name].dtype) for name in FIELDS if name in everywhere}
        attributes = dict(shard.attrs)
    first = 0
    for split in SPLITS:
        count = splits[split]
        aside = folder / f"{split}.partial-{os.getpid()}"
        with h5py.File(aside, "w") as file:
            file.attrs.update(attributes)
            for name, (shape, dtype) in shapes.items():
                layout = h5py.VirtualLayout((count, *shape), dtype)
                for index, start in enumerate(edges[:-1]):
                    low, high = max(first, start), min(first + count, edges[index + 1])
                    if low < high:
                        source = h5py.VirtualSource(
                            shard_path(folder, index).name, name, (lengths[index], *shape), dtype
                        )
                        layout[low - first : high - first] = source[low - start : high - start]
                file.create_virtual_dataset(name, layout)
        aside.replace(folder / f"{split}.h5")
        first += count


def open_split(path: str | Path) -> h5py.File:
    """Open `train.h5`, `val.h5` or `test.h5` (or a plain shard) for reading.

    Raises `DatasetError` if the file or a shard behind it is missing; HDF5 itself would silently read zeros.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no dataset at {path}; render one with notebook 01_generate_data")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path} is not a readable HDF5 file: {error}") from error
    with_sources = [file[name] for name in FIELDS if name in file and file[name].is_virtual]
    sources = {source.file_name for dataset in with_sources for source in dataset.virtual_sources()}
    missing = sorted(name for name in sources if not (path.parent / name).is_file())
    if missing:
        file.close()
        raise DatasetError(
            f"{path} needs {missing[0]} and {len(missing) - 1} more shards that are not beside it"
        )
    return file


def write_stats(folder: Path, chunk: int = 256) -> Path:
    """Mean and standard deviation of every mel cell over the training clips, in one streaming pass."""
    with open_split(folder / "train.h5") as file:
        mel = file["mel_spec"]
        total, square = np.zeros(mel.shape[1:]), np.zeros(mel.shape[1:])
        for first in range(0, len(mel), chunk):
            part = mel[first : first + chunk].astype(np.float32)
            total += part.sum(axis=0, dtype=np.float64)
            square += np.einsum("n...,n...->...", part, part)
        mean = total / len(mel)
        std = np.sqrt(np.clip(square / len(mel) - mean**2, 0, None))
    aside = folder / "stats.partial-0.npz"
    np.savez(aside, mean=mean.astype(np.float32), std=std.astype(np.float32))
    return aside.rename(folder / "stats.npz")
