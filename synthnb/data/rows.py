"""Rows of a split, in any order: whole fields of the clips that a batch is made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from synthnb.data.shards import DatasetError, fields_of, find_source, open_split, read_pieces

OPEN = 128  # shards at a time; a system may allow a process 256 files


class Rows:
    """`rows[[3, 1, 2]]` reads `fields` of those clips, `{name: (3, ...)}`, from the shards themselves.

    Through the virtual file HDF5 would look at the mapping of every shard at each read. A shard is opened when it is
    first needed. Make it in the process that uses it: open HDF5 files can't be passed on.

    Raises `DatasetError` if the split lacks a field.
    """

    def __init__(self, path: str | Path, fields: Sequence[str]):
        path = Path(path)
        with open_split(path) as file:
            self._fields = {name: field for name, field in fields_of(file).items() if name in fields}
            pieces = read_pieces(file)
        if missing := [name for name in fields if name not in self._fields]:
            raise DatasetError(f"{path} has no {', '.join(missing)}; 'synthnb featurize' adds features")
        self._pieces = pieces
        self._edges = np.cumsum([0, *(piece.count for piece in pieces)])

        @functools.lru_cache(OPEN)
        def shard(name: str) -> h5py.File:
            return h5py.File(find_source(path, name), "r", rdcc_nbytes=0)  # what is read once needs no cache

        self._shard = shard

    def __len__(self) -> int:
        return int(self._edges[-1])

    def __getitem__(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        wanted, back = np.unique(rows, return_inverse=True)  # HDF5 reads rows once, in rising order
        found = {
            name: np.empty((len(wanted), *shape), dtype) for name, (shape, dtype) in self._fields.items()
        }
        cuts = np.searchsorted(wanted, self._edges)
        for i in np.flatnonzero(np.diff(cuts)):
            piece = self._pieces[i]
            shard = self._shard(piece.file)
            for name, values in found.items():
                field = shard[name]
                for at in range(cuts[i], cuts[i + 1]):  # all at once takes h5py ten times as long
                    values[at] = field[wanted[at] - self._edges[i] + piece.first]
        return {name: values[back] for name, values in found.items()}
