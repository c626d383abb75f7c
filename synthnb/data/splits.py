"""What shows the clips of a dataset's shards as one: virtual files, and statistics."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from synthnb.data.shards import (
    SPLITS,
    DamagedFile,
    DatasetError,
    Piece,
    fields_of,
    reading,
    reading_split,
    shard_path,
    stream,
    unpack,
)


def write_virtual(
    path: Path, fields: dict[str, tuple[tuple[int, ...], np.dtype]], pieces: list[Piece], attributes: dict
) -> None:
    """Write an HDF5 file, whole or not at all, whose `fields` (a clip's shape and type) are the rows of `pieces`."""
    count = sum(piece.count for piece in pieces)
    aside = path.with_suffix(f".partial-{secrets.token_hex(4)}")  # others may be writing the same file
    with h5py.File(aside, "w") as file:
        file.attrs.update(attributes)
        for name, (shape, dtype) in fields.items():
            layout = h5py.VirtualLayout((count, *shape), dtype)
            at = 0
            for piece in pieces:
                source = h5py.VirtualSource(piece.file, name, (piece.length, *shape), dtype)
                layout[at : at + piece.count] = source[piece.first : piece.first + piece.count]
                at += piece.count
            file.create_virtual_dataset(name, layout)
    aside.replace(path)


def sweep(folder: Path) -> None:
    """Delete what a killed run left of virtual files and statistics."""
    for name in (*SPLITS, "stats"):
        for leftover in folder.glob(f"{name}.partial-*"):
            leftover.unlink(missing_ok=True)


def write_splits(folder: Path, lengths: list[int], splits: dict[str, int], **attributes) -> None:
    """Write `val.h5`, `test.h5`, `train.h5`: virtual datasets over those shards of the given `lengths` that are there.

    `splits` says how many clips each takes in the end, in the order of `SPLITS`, from the first clip on; `val.h5` and
    `test.h5` are written once they have all. A field that one of the shards lacks (a feature was added, then the
    dataset grew) is left out: HDF5 would read zeros there. Nothing is written as long as there is no shard.
    """
    shards, there = {}, {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.h5")}
    for index, length in enumerate(lengths):
        path = shard_path(folder, index)
        if path.name in there and (found := _read_shape(path, there[path.name])) and found[0] == length:
            shards[index] = found
    if not shards:
        return
    everywhere = set.intersection(*(set(fields) for _, fields in shards.values()))
    with reading(shard_path(folder, min(shards))) as shard:
        fields = {name: field for name, field in fields_of(shard).items() if name in everywhere}
        attributes = {**shard.attrs, **splits, **attributes}
    first, starts = 0, np.cumsum([0, *lengths])
    for split, count in splits.items():
        pieces = []
        for index in shards:
            start, stop = starts[index], starts[index + 1]
            low, high = max(first, start), min(first + count, stop)
            if low < high:
                pieces.append(
                    Piece(shard_path(folder, index).name, lengths[index], int(low - start), int(high - low))
                )
        first += count
        if split == "train" or sum(piece.count for piece in pieces) == count:
            write_virtual(folder / f"{split}.h5", fields, pieces, attributes)
        else:
            (folder / f"{split}.h5").unlink(missing_ok=True)  # of a dataset that was to have fewer


@functools.lru_cache(100_000)
def _read_shape(path: Path, _: int) -> tuple[int, dict] | None:
    """Clips and fields of a shard as of that time; None if it is damaged, and is made again."""
    try:
        with reading(path) as file:
            return len(file["param_array"]), fields_of(file)
    except DamagedFile:
        return None


def mean_and_std(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of every cell over all clips, which come in `parts`: each float32 of a clip's shape, in one pass."""
    count, total, square = 0, 0.0, 0.0
    for part in parts:
        part = part.astype(np.float32)
        count, total = count + len(part), total + part.sum(axis=0, dtype=np.float64)
        square = square + np.einsum("n...,n...->...", part, part).astype(np.float64)
    mean = total / count
    std = np.sqrt(np.clip(square / count - mean**2, 0, None))
    return mean.astype(np.float32), std.astype(np.float32)


def write_stats(folder: Path) -> Path:
    """Mean and standard deviation of every cell over the training clips, in one streaming pass."""
    mean, std = stats_of(folder)
    aside = folder / f"stats.partial-{secrets.token_hex(4)}.npz"
    np.savez(aside, mean=mean, std=std)
    return aside.replace(folder / "stats.npz")


def stats_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What belongs into `stats.npz`: of `mel_spec` or, where that was not kept, `coarse` in dB."""
    path = folder / "train.h5"
    with reading_split(path) as file:
        name = next((name for name in ("mel_spec", "coarse") if name in file), None)
    if name is None:
        raise DatasetError(
            f"{path} has neither mel_spec nor coarse; 'synthnb featurize --feature mel_spec' adds it"
        )
    return mean_and_std(unpack(part) if name == "coarse" else part for (part,) in stream(path, name))
