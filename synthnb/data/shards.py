"""The HDF5 layout of a dataset folder.

`shard-00000.h5 …` hold consecutive clips: `param_array (n, width) float32`; `attempts (n,) uint16`, which draw was loud
enough; `mel_spec (n, channels, 128, frames) float16` and, if kept, `audio (n, channels, samples) float16`; `featurize`
adds `music2latent (n, channels * 64, frames) float16`. A compact dataset has, in place of sound and spectrogram, only
what an encoder looks at: `coarse (n, channels, 64, frames // 4) uint8` (see `pack`). All lie in one piece, so that
they can be mapped, with a `crc32`. Attributes say how they were made. With `edits` = k among them, every (k + 1)th clip
was drawn from the prior, and the k after it are edits of it.

`val.h5`, `test.h5` and `train.h5` are virtual datasets over the shards, with relative paths, so that a folder can be
moved. While a folder is being filled, `train.h5` shows what is there; attributes say how many clips each will have.
`stats.npz` comes last: `mean` and `std` of the training clips' `mel_spec`, each `(channels, 128, frames)`, or `coarse`.

Names, shapes and scaling are those of the synth-permutations datasets, and folders made by its tools open here. They
have float32 spectrograms, Blosc2 compression, splits of whole shards, and no attribute that says the space.
"""

from __future__ import annotations

import functools
import importlib
import secrets
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from synthnb.space import ParameterSpace

FIELDS = ("audio", "mel_spec", "music2latent", "coarse", "param_array", "attempts")
SPLITS = ("val", "test", "train")  # in the order of the clips: a dataset can grow and keep its test clips
LOWEST, STEP = -80.0, 80 / 255  # dB, of `coarse`
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError)  # what h5py raises on damaged files


class DatasetError(RuntimeError):
    """A dataset folder that is missing, incomplete or made otherwise; the message says what and what to do."""


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` of a dataset lies."""
    return folder / f"shard-{index:05d}.h5"


def shard_lengths(clips: int, shard_size: int) -> list[int]:
    """How many clips each shard holds: all `shard_size`, the last the rest."""
    return [min(shard_size, clips - first) for first in range(0, clips, shard_size)]


def pack(coarse: np.ndarray) -> np.ndarray:
    """Spectrograms in [-80, 0] dB as uint8, in steps of 80 / 255 dB, about a third of one."""
    return np.rint((coarse - LOWEST) / STEP).astype(np.uint8)


def unpack(codes: np.ndarray) -> np.ndarray:
    """The inverse of `pack`: float32, in dB."""
    return codes * np.float32(STEP) + np.float32(LOWEST)


class Column:
    """A field of a shard that is being written from its first clip to its last; `finish` adds the checksum."""

    def __init__(self, file: h5py.File, name: str, clips: int, shape: tuple[int, ...], dtype: np.dtype):
        self.dataset, self._at, self._crc = file.create_dataset(name, (clips, *shape), dtype), 0, 0
        if name == "coarse":
            self.dataset.attrs.update(scale_factor=STEP, add_offset=LOWEST, units="dB")

    def append(self, values: np.ndarray) -> None:
        """The next clips, `(n, *shape)`."""
        values = np.ascontiguousarray(values, self.dataset.dtype)
        self.dataset[self._at : self._at + len(values)] = values
        self._at, self._crc = self._at + len(values), zlib.crc32(values, self._crc)

    def finish(self) -> None:
        """All clips are written."""
        self.dataset.attrs["crc32"] = self._crc


class Piece(NamedTuple):
    """Rows `first` to `first + count` of the `length` that a `file` holds; its path is relative to who refers to it."""

    file: str
    length: int
    first: int
    count: int


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


def read_pieces(file: h5py.File) -> list[Piece]:
    """What an open split is made of, in order; of a file that holds its clips itself, that file.

    Raises `DatasetError` if it is not whole ranges of rows, one after the other.
    """
    vectors = file["param_array"]
    if not vectors.is_virtual:
        return [Piece(Path(file.filename).name, len(vectors), 0, len(vectors))] if len(vectors) else []
    found, at = [], 0
    for source in sorted(vectors.virtual_sources(), key=lambda source: source.vspace.get_select_bounds()[0]):
        (start, *_), (last, *_) = source.vspace.get_select_bounds()
        count = source.vspace.get_select_npoints() // vectors.shape[1]
        first, stop, length = 0, count, count
        if source.src_space.get_select_type() != h5py.h5s.SEL_ALL:  # which has neither bounds nor a length
            (first, *_), (final, *_) = source.src_space.get_select_bounds()
            stop, length = final + 1, source.src_space.shape[0]
        if (start, last + 1, stop) != (at, at + count, first + count):
            raise DatasetError(f"{file.filename} takes every so many rows of its shards; join whole ranges")
        found.append(Piece(source.file_name, length, first, count))
        at += count
    return found


def fields_of(file: h5py.File) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The shape of a clip and the type of each of `FIELDS` that a file has."""
    return {name: (file[name].shape[1:], file[name].dtype) for name in FIELDS if name in file}


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
    with h5py.File(shard_path(folder, min(shards)), "r") as shard:
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
    """Clips and fields of a shard as of that time; None if it can't be read, and is made again."""
    try:
        with h5py.File(path, "r") as file:
            return len(file["param_array"]), fields_of(file)
    except UNREADABLE:
        return None


def find_source(path: Path, name: str) -> Path | None:
    """Where HDF5 finds the file that a virtual dataset in `path` calls `name`; None where it would read zeros."""
    places = [path.parent / name, Path(name)]
    if Path(name).is_absolute():  # of a folder that was moved
        places.append(path.parent / Path(name).name)
    return next((place for place in places if place.is_file()), None)


def open_split(path: str | Path) -> h5py.File:
    """Open `train.h5`, `val.h5` or `test.h5` (or a plain shard) for reading.

    Raises `DatasetError` if the file or a shard behind it is missing; HDF5 itself would silently read zeros. Also if it
    takes a decompressor that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no dataset at {path}; render one with notebook 01_generate_data")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path} is not a readable HDF5 file: {error}") from error
    try:
        with_sources = [file[name] for name in FIELDS if name in file and file[name].is_virtual]
        sources = sorted({source.file_name for field in with_sources for source in field.virtual_sources()})
        missing = [name for name in sources if not find_source(path, name)]
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DatasetError(
                f"{path} needs {missing[0]}{others}, not found from where it lies; put the shards back, or run the "
                "command again that made the dataset"
            )
        for source in sources[:1]:  # all were made alike
            with open_split(find_source(path, source)):
                pass
        need_decompressors(file)
    except DatasetError:
        file.close()
        raise
    return file


def need_decompressors(file: h5py.File) -> None:
    """Load `hdf5plugin` if a field is compressed by what HDF5 itself lacks. Raises `DatasetError` without it."""
    for name in FIELDS:
        pipeline = file[name].id.get_create_plist() if name in file else None
        for i in range(pipeline.get_nfilters() if pipeline else 0):
            code = pipeline.get_filter(i)[0]
            if h5py.h5z.filter_avail(code):
                continue
            try:
                importlib.import_module("hdf5plugin")
            except ImportError:
                raise DatasetError(
                    f"{file.filename}: {name} is compressed by HDF5 filter {code} (32026 is Blosc2); "
                    "pip install hdf5plugin"
                ) from None


def read_space(file: h5py.File, space: str | Path | None = None) -> ParameterSpace:
    """The space of an open split, from its attributes or, where these don't say it, by name or path.

    Raises `DatasetError` if neither does, or if its vectors have another length.
    """
    if "space" in file.attrs:
        found = ParameterSpace.parse(file.attrs["space"], file.filename)
    elif space is None:
        raise DatasetError(
            f"{file.filename} does not say its space; give the name or .yaml file of one, such as surge_simple, "
            "or make a copy that says it: synthnb subset --space"
        )
    else:
        found = ParameterSpace.load(space)
    width = file["param_array"].shape[1]
    if width != found.width:
        raise DatasetError(
            f"{file.filename} holds vectors of {width} numbers; those of space '{found.name}' have {found.width}"
        )
    return found


def stream(path: str | Path, *names: str, chunk: int = 256) -> Iterator[tuple[np.ndarray, ...]]:
    """Fields of a split's clips in order, at most `chunk` clips at a time; of an empty split, one empty part.

    Shard by shard, in the memory of one chunk: of a virtual file HDF5 keeps 8 MB for every shard that it has read.
    """
    path = Path(path)
    with open_split(path) as file:
        pieces = read_pieces(file)
        if not len(file[names[0]]):
            yield tuple(file[name][:0] for name in names)
    for piece in pieces:
        with h5py.File(find_source(path, piece.file), "r") as shard:
            for first in range(piece.first, piece.first + piece.count, chunk):
                rows = slice(first, min(first + chunk, piece.first + piece.count))
                yield tuple(shard[name][rows] for name in names)


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
    with open_split(path) as file:
        name = "mel_spec" if "mel_spec" in file else "coarse"
    return mean_and_std(unpack(part) if name == "coarse" else part for (part,) in stream(path, name))
