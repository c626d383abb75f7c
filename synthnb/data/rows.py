"""Clips of a split in any order: mapped from the shards themselves, where their fields lie in one piece.

What an encoder looks at is not in every dataset: of those that keep whole spectrograms a compact copy is made, shard by
shard, in the folder `compact` beside them or, where that can't be written to, in `~/.cache/synthnb`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch

from synthnb.data.shards import (
    Column,
    DatasetError,
    Piece,
    clips_in,
    fields_of,
    find_source,
    in_words,
    pack,
    read_pieces,
    reading,
    reading_split,
    stream,
)
from synthnb.features import coarse

OPEN = 128  # files of compressed fields at a time; a system may allow a process 256
SEEN = ("coarse", "param_array")  # what a compact copy holds


class Rows:
    """`rows[[3, 1, 2]]` reads `fields` of those clips, `{name: (3, ...)}`.

    Make it in the process that uses it: open HDF5 files can't be passed on.

    Raises `DatasetError` if the split lacks a field or a shard is shorter than the split says.
    """

    def __init__(self, path: str | Path, fields: Sequence[str]):
        self._path, self._names, self._opened, self._time = Path(path), tuple(fields), {}, None
        self._file = functools.lru_cache(OPEN)(lambda name: h5py.File(name, "r", rdcc_nbytes=0))
        self.grow()

    def __len__(self) -> int:
        return int(self._edges[-1])

    def grow(self) -> None:
        """Take in what has come since: a split is written anew as a dataset is being rendered."""
        time = self._path.stat().st_mtime_ns if self._path.is_file() else None
        if time is not None and time == self._time:
            return
        with reading_split(self._path) as file:
            fields, pieces = fields_of(file), read_pieces(file)
        if "mel_spec" in fields and "coarse" not in fields:
            channels, bands, frames = fields["mel_spec"][0]
            fields["coarse"] = (channels, bands // 2, frames // 4), np.dtype(np.uint8)
        if missing := [name for name in self._names if name not in fields]:
            raise DatasetError(f"{self._path} has no {', '.join(missing)}; 'synthnb featurize' adds features")
        self._fields = {name: fields[name] for name in self._names}
        self._opened = {piece: self._opened.get(piece) or self._open(piece) for piece in pieces}
        self._parts = list(self._opened.values())
        self._edges = np.cumsum([0, *(piece.count for piece in pieces)])
        self._time = time

    def _open(self, piece: Piece) -> dict[str, np.ndarray | tuple[Path, int]]:
        """Of each field the rows of a piece, mapped, or the file that holds them and the first of them."""
        found, names, path = {}, list(self._names), find_source(self._path, piece.file)
        while names:
            with reading(path) as file:
                mapping, _ = None, clips_in(file, piece)
                for name in [name for name in names if name in file]:
                    field = file[name]
                    at = field.id.get_offset()  # None if it is not in one piece
                    if at is not None and not field.external:
                        mapping = _map(path) if mapping is None else mapping
                        values = mapping[at : at + field.nbytes].view(field.dtype).reshape(field.shape)
                        found[name] = values[piece.first : piece.first + piece.count]
                    elif name not in SEEN:
                        found[name] = path, piece.first
            names = [name for name in names if name not in found]
            if names:
                path = compact_copy(path)
        return found

    def __getitem__(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        rows = np.asarray(rows)
        order = rows.argsort(kind="stable")
        cuts = np.searchsorted(rows[order], self._edges)
        taken = {name: np.empty((len(rows), *shape), dtype) for name, (shape, dtype) in self._fields.items()}
        for i in np.flatnonzero(np.diff(cuts)):
            at = order[cuts[i] : cuts[i + 1]]
            here, part = rows[at] - self._edges[i], self._parts[i]
            for name, values in taken.items():
                if isinstance(part[name], np.ndarray):
                    values[at] = part[name][here]
                else:
                    path, first = part[name]
                    try:
                        field = self._file(path)[name]
                        for to, row in zip(at, here):  # all at once takes h5py ten times as long
                            values[to] = field[first + row]
                    except (OSError, RuntimeError) as error:
                        raise in_words(path, error) from error
        return taken

    def stream(self, chunk: int, every: int = 1) -> Iterator[tuple[np.ndarray, ...]]:
        """All clips in order, or every so many, at most `chunk` at a time."""
        for at in range(0, len(self), chunk * every):
            yield tuple(self[range(at, min(at + chunk * every, len(self)), every)].values())


def _map(path: Path) -> np.ndarray:
    """A file's bytes, mapped; unlike NumPy's, it takes no file descriptor, of which a process has few."""
    size = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()


def compact_copy(shard: Path) -> Path:
    """A file with a shard's `coarse` and `param_array`, made if it is not there (a minute for 100,000 clips)."""
    state = shard.stat()
    origin = f"{state.st_size} bytes at {state.st_mtime_ns}"
    key = hashlib.sha256(str(shard.resolve()).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthnb"
    places = [shard.parent / "compact" / shard.name, cache / f"compact-{key}.h5"]
    for place in places:
        try:
            with h5py.File(place, "r") as file:
                if file.attrs["origin"] == origin:
                    return place
        except (OSError, KeyError):
            continue
    for place in places:
        try:
            return _write_compact(shard, place, origin)
        except OSError as error:
            reason = error
    raise DatasetError(
        f"what an encoder looks at in {shard} can be kept neither beside it nor in {cache} ({reason}); "
        "name a folder with room in XDG_CACHE_HOME"
    )


def _write_compact(shard: Path, place: Path, origin: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_suffix(f".partial-{secrets.token_hex(4)}")
    try:
        with h5py.File(aside, "w") as file:
            columns = None
            with reading(shard) as source:
                clips = len(source["param_array"])
            for mel, vectors in stream(shard, "mel_spec", "param_array"):
                seen = pack(coarse(torch.from_numpy(mel).float()).numpy()), vectors.astype(np.float32)
                columns = columns or [
                    Column(file, name, clips, part.shape[1:], part.dtype) for name, part in zip(SEEN, seen)
                ]
                for column, part in zip(columns, seen):
                    column.append(part)
            file.attrs["origin"] = origin
        return aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)
