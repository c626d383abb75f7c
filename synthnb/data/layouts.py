"""Datasets laid out anew: a subset over another one's shards, a copy as the loaders of synth-permutations read it.

As their source has it (github.com/ben-hayes/synth-permutations, `src/data/surge_datamodule.py` and
`scripts/reshard_data.py`): `train.h5`, `val.h5` and `test.h5`, virtual float32 datasets over whole shards, train first,
of `audio` (by which clips are counted), `mel_spec`, `param_array` in [0, 1] (the loader makes it [-1, 1]) and, if there
is one, `music2latent`; `stats.npz` with the `mean` and `std` of `mel_spec`. In the shards audio is float16, as the
generator there writes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import h5py
import numpy as np

from synthnb.data.shards import (
    DatasetError,
    Piece,
    fields_of,
    find_source,
    read_pieces,
    read_space,
    reading_split,
    shard_path,
)
from synthnb.data.splits import write_stats, write_virtual

SHARD = 10_000  # clips, as there
CHUNK = 64  # clips copied at once
KEPT = ("space", "space_name", "velocity", "seconds", "sample_rate", "edits", "versions")


def write_subset(
    folder: str | Path, out: str | Path, clips: int, seed: int = 0, space: str | Path | None = None
) -> Path:
    """A dataset of `clips` training clips, and all validation and test clips, of the one in `folder`.

    It holds paths from `out` to the shards: both folders can be moved together. The clips are a run of whole families
    that begins anywhere: as they don't depend on each other, that is as good as a choice of single ones, and quicker
    to read.

    Args:
        folder: what `generate` wrote, another subset, or a folder of the synth-permutations family.
        out: a new folder.
        seed: decides where the run begins.
        space: name or path of the space, where `folder` does not say it; `out` will.

    Returns:
        `out`.

    Raises:
        DatasetError: `folder` is incomplete, `out` is not empty, or that many clips or parts of families are not there.
    """
    folder, out = Path(folder), Path(out)
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(reading_split(folder / f"{split}.h5"))
            for split in ("train", "val", "test")
        }
        train, counts = files["train"], {split: len(file["param_array"]) for split, file in files.items()}
        total, family = counts["train"], 1 + int(train.attrs.get("edits", 0))
        if not 0 < clips <= total or clips % family:
            raise DatasetError(
                f"{clips} clips of {folder}: 1 to {total} are there"
                + (f", and only whole families of {family}" if family > 1 else "")
            )
        found = read_space(train, space)
        make_empty(out)
        first = family * int(np.random.default_rng(seed).integers((total - clips) // family + 1))
        says = {"space": found.text, "space_name": found.name, **counts, "train": clips}
        for split, file in files.items():
            low, high = (first, first + clips) if split == "train" else (0, counts[split])
            pieces = _between(read_pieces(file), low, high, folder, out)
            write_virtual(out / f"{split}.h5", fields_of(file), pieces, {**file.attrs, **says})
    write_stats(out)
    return out


def make_empty(out: Path) -> None:
    """Create a folder. Raises `DatasetError` if it is there and holds something."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise DatasetError(f"{out} is not empty; use a new folder")


def _between(pieces: list[Piece], low: int, high: int, folder: Path, out: Path) -> list[Piece]:
    """Rows `low` to `high` of `pieces`, with paths from `out` in place of those from `folder`."""
    chosen, at = [], 0
    for file, length, first, count in pieces:
        start, stop = max(low - at, 0), min(high - at, count)
        if start < stop:
            source = find_source(folder / "train.h5", file).resolve()
            chosen.append(Piece(os.path.relpath(source, out.resolve()), length, first + start, stop - start))
        at += count
    return chosen


def export(folder: str | Path, out: str | Path) -> Path:
    """Copy a dataset into the new folder `out`, in the layout of synth-permutations.

    Channels and lengths stay as they are; the encoders there expect two channels and 4 s. The space and the families go
    along as attributes, so that `out` opens here too; the seed does not, so `generate` won't go on with it.

    Raises `DatasetError` if the dataset is incomplete or has no audio, or if `out` is not empty.
    """
    folder, out = Path(folder), Path(out)
    with reading_split(folder / "train.h5") as file:
        if "audio" not in file:
            raise DatasetError(f"{folder} has no audio, which the loaders need; generate it with audio")
    stats = folder / "stats.npz"
    if not stats.is_file():
        raise DatasetError(
            f"{folder} has no stats.npz: it is not complete; run the same generate command again"
        )
    make_empty(out)
    index = 0
    for split in ("train", "val", "test"):
        with reading_split(folder / f"{split}.h5") as file:
            pieces, clips = [], len(file["param_array"])
            for first in range(0, clips, SHARD):
                count = min(SHARD, clips - first)
                path = shard_path(out, index)
                _copy(file, path, first, count)
                pieces.append(Piece(path.name, count, 0, count))
                index += 1
            fields = {name: (shape, np.dtype(np.float32)) for name, (shape, _) in _fields(file).items()}
            write_virtual(out / f"{split}.h5", fields, pieces, _kept(file))
    shutil.copyfile(stats, out / "stats.npz")
    return out


def _fields(file: h5py.File) -> dict:
    """Those of a file that are known there."""
    return {name: field for name, field in fields_of(file).items() if name not in ("coarse", "attempts")}


def _kept(file: h5py.File) -> dict:
    return {name: file.attrs[name] for name in KEPT if name in file.attrs}


def _copy(file: h5py.File, path: Path, first: int, count: int) -> None:
    """Rows `first` to `first + count` of a split as a shard."""
    attributes = file.attrs
    with h5py.File(path, "w") as shard:
        shard.attrs.update(_kept(file))
        for name, (shape, _) in _fields(file).items():
            dtype = np.float16 if name == "audio" else np.float32
            dataset = shard.create_dataset(name, (count, *shape), dtype)
            for at in range(0, count, CHUNK):
                stop = min(at + CHUNK, count)
                dataset[at:stop] = file[name][first + at : first + stop]
        audio = shard["audio"]
        audio.attrs["channels"] = audio.shape[1]
        for here, there in (
            ("velocity", "velocity"),
            ("seconds", "signal_duration_seconds"),
            ("sample_rate", "sample_rate"),
            ("loudness_floor", "min_loudness"),
        ):
            if here in attributes:
                audio.attrs[there] = attributes[here]
