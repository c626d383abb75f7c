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

import contextlib
import importlib
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from synthnb.space import ParameterSpace, SpaceError

FIELDS = ("audio", "mel_spec", "music2latent", "coarse", "param_array", "attempts")
SPLITS = ("val", "test", "train")  # in the order of the clips: a dataset can grow and keep its test clips
LOWEST, STEP = -80.0, 80 / 255  # dB, of `coarse`
LARGEST = 1 << 30  # bytes of a clip; what claims to be larger is damaged


class DatasetError(RuntimeError):
    """A dataset that is missing, incomplete, made otherwise or out of reach; the message says what and what to do."""


class DamagedFile(DatasetError):
    """A file that does not hold what it should; making or getting it again mends that."""


class UnreachableFile(DatasetError):
    """A file that may be sound, but can't be read now: its rights, another program's lock, the disk."""


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` of a dataset lies."""
    return folder / f"shard-{index:05d}.h5"


def shard_lengths(clips: int, shard_size: int) -> list[int]:
    """How many clips each shard holds: all `shard_size`, the last the rest."""
    return [min(shard_size, clips - first) for first in range(0, clips, shard_size)]


def pack(coarse: np.ndarray) -> np.ndarray:
    """Spectrograms in [-80, 0] dB as uint8, in steps of 80 / 255 dB, about a third of one."""
    return np.rint((coarse - LOWEST) / STEP).clip(0, 255).astype(np.uint8)


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


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[h5py.File]:
    """Open a shard or a split. Whatever goes wrong in reading it becomes a `DatasetError`.

    That is a `DamagedFile` or an `UnreachableFile`.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (DatasetError, SpaceError):
        raise
    except Exception as error:  # on damaged files HDF5 and h5py raise a dozen kinds
        raise in_words(path, error) from error


def in_words(path: str | Path, error: Exception) -> DatasetError:
    """What to tell of an error of HDF5."""
    if code := getattr(error, "errno", None):
        return UnreachableFile(
            f"{path} can't be read now: {os.strerror(code)}. It may be sound: close what else uses it, or look at its "
            "rights and at the disk"
        )
    return DamagedFile(f"{path} is not a readable HDF5 file, cut short or damaged: {error}")


@contextlib.contextmanager
def reading_split(path: str | Path) -> Iterator[h5py.File]:
    """`reading` of `train.h5`, `val.h5` or `test.h5`, once it is sure that HDF5 finds all that is behind it.

    Raises `DatasetError` if the file or a shard behind it is missing, where HDF5 itself would silently read zeros, or
    if it takes a decompressor that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no dataset at {path}; render one with notebook 01_generate_data")
    with reading(path) as file:
        sources = {
            source.file_name
            for name in FIELDS
            if name in file and file[name].is_virtual
            for source in file[name].virtual_sources()
        }
        missing = sorted(name for name in sources if not find_source(path, name))
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DatasetError(
                f"{path} needs {missing[0]}{others}, not found from where it lies; put the shards back, or run the "
                "command again that made the dataset"
            )
        for source in sorted(sources)[:1]:  # all were made alike
            with reading(find_source(path, source)) as shard:
                need_decompressors(shard)
        need_decompressors(file)
        yield file


def open_split(path: str | Path) -> h5py.File:
    """An open `train.h5`, `val.h5` or `test.h5`, to be closed again. Raises what `reading_split` does."""
    with reading_split(path):
        return h5py.File(path, "r")


def find_source(path: Path, name: str) -> Path | None:
    """Where HDF5 finds the file that a virtual dataset in `path` calls `name`; None where it would read zeros."""
    places = [path.parent / name, Path(name)]
    if Path(name).is_absolute():  # of a folder that was moved
        places.append(path.parent / Path(name).name)
    return next((place for place in places if place.is_file()), None)


def read_pieces(file: h5py.File, name: str = "param_array") -> list[Piece]:
    """What a field of an open split is made of, in order; of a file that holds its clips itself, that file.

    Raises `DatasetError` if it is not whole ranges of rows, one after the other.
    """
    field = file[name]
    if not field.is_virtual:
        return [Piece(Path(file.filename).name, len(field), 0, len(field))] if len(field) else []
    found, at = [], 0
    for source in sorted(field.virtual_sources(), key=lambda source: source.vspace.get_select_bounds()[0]):
        (start, *_), (last, *_) = source.vspace.get_select_bounds()
        count = source.vspace.get_select_npoints() // math.prod(field.shape[1:])
        first, stop, length = 0, count, count
        if source.src_space.get_select_type() != h5py.h5s.SEL_ALL:  # which has neither bounds nor a length
            (first, *_), (final, *_) = source.src_space.get_select_bounds()
            stop, length = final + 1, source.src_space.shape[0]
        if (start, last + 1, stop) != (at, at + count, first + count):
            raise DatasetError(f"{file.filename} takes every so many rows of its shards; join whole ranges")
        found.append(Piece(source.file_name, length, first, count))
        at += count
    if at != len(field):
        raise DamagedFile(f"{file.filename} has {len(field)} rows in {name}, its shards give {at}")
    return found


def clips_in(shard: h5py.File, piece: Piece) -> int:
    """How many clips an open shard holds. Raises `DamagedFile` if a split shows more."""
    clips = len(shard["param_array"])
    if piece.first + piece.count > clips:
        raise DamagedFile(
            f"{shard.filename} holds {clips} clips, not the {piece.first + piece.count} that a split shows; run the "
            "command again that made the dataset"
        )
    return clips


def clip_numbers(file: h5py.File) -> np.ndarray:
    """Of each clip of an open split its number in the dataset that `generate` made, int64 `(n,)`."""
    size, parts = int(file.attrs["shard_size"]), [np.empty(0, int)]
    for piece in read_pieces(file):
        parts.append(
            int(Path(piece.file).stem.removeprefix("shard-")) * size + piece.first + np.arange(piece.count)
        )
    return np.concatenate(parts)


def fields_of(file: h5py.File) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The shape of a clip and the type of each of `FIELDS` that a file has. Raises `DamagedFile` on absurd ones."""
    fields = {name: (file[name].shape[1:], file[name].dtype) for name in FIELDS if name in file}
    for name, (shape, dtype) in fields.items():
        if math.prod(shape) * dtype.itemsize > LARGEST or dtype.kind not in "fiu":
            raise DamagedFile(f"{file.filename} is damaged: {name} has clips of shape {shape}, type {dtype}")
    return fields


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
        try:
            found = ParameterSpace.parse(file.attrs["space"], file.filename)
        except SpaceError as error:
            raise DamagedFile(str(error)) from error
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
    with reading_split(path) as file:
        pieces = read_pieces(file)
        if not pieces:
            yield tuple(file[name][:0] for name in names)
    for piece in pieces:
        with reading(find_source(path, piece.file)) as shard:
            clips_in(shard, piece)
            for first in range(piece.first, piece.first + piece.count, chunk):
                rows = slice(first, min(first + chunk, piece.first + piece.count))
                yield tuple(shard[name][rows] for name in names)
