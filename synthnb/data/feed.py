"""Feeding a training: shuffled batches whose fields stay together.

Averaged spectrograms and vectors come from a compact copy of the dataset, one record a clip; whole fields (`audio`,
`mel_spec`, `music2latent`), where they are asked for, from the shards.
"""

from __future__ import annotations

import functools
import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from synthnb.data.shards import (
    DatasetError,
    fields_of,
    find_source,
    mean_and_std,
    open_split,
    read_pieces,
    read_space,
    stream,
)
from synthnb.features import coarse
from synthnb.space import ParameterSpace

CHUNK = 256  # clips read at once
BLOCK, MIXED = (
    256,
    64,
)  # clips that lie side by side are a block; the clips of so many blocks are shuffled together
OPEN = 128  # shards at a time; a system may allow a process 256 files
VALIDATION_BATCH = 256
MEASURED = 10_000  # clips, evenly spread, that mean and standard deviation are taken of

Batch = dict[str, torch.Tensor]


def compact_copy(path: str | Path) -> np.ndarray:
    """A record of every clip of a split: `mel`, its `coarse` in float16, and `vector`, float32.

    It is made once (a minute for 100,000 clips; 13 KB and the vector for a mono clip of 4 s) and kept beside the split
    as `train-compact.npy`, from where it is mapped, not read; in a folder that can't be written to it stays in memory.
    """
    path = Path(path)
    kept, stats = path.with_name(f"{path.stem}-compact.npy"), path.with_name("stats.npz")
    if not stats.is_file():  # it comes last
        raise DatasetError(
            f"the dataset in {path.parent} is not complete; run notebook 01_generate_data again"
        )
    if not kept.is_file() or kept.stat().st_mtime < stats.stat().st_mtime:
        with open_split(path) as file:
            clips = len(file["param_array"])
        try:
            save_rows(kept, clips, _records(path))
        except OSError:
            return np.concatenate(list(_records(path)))
    return np.load(kept, mmap_mode="r")


def _records(path: Path) -> Iterator[np.ndarray]:
    for mel, vectors in stream(path, "mel_spec", "param_array"):
        sound = coarse(torch.from_numpy(mel).float()).half().numpy()
        kind = [("mel", np.float16, sound.shape[1:]), ("vector", np.float32, vectors.shape[1:])]
        records = np.empty(len(mel), kind)
        records["mel"], records["vector"] = sound, vectors
        yield records


def save_rows(path: Path, count: int, parts: Iterator[np.ndarray]) -> None:
    """Write a `.npy` file of `count` rows that come in `parts`, whole or not at all. Raises `OSError`."""
    aside = path.with_suffix(f".partial-{secrets.token_hex(4)}")
    first = next(parts)
    shape, kind = (count, *first.shape[1:]), np.lib.format.dtype_to_descr(first.dtype)
    try:
        with open(aside, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"shape": shape, "descr": kind, "fortran_order": False}
            )
            for part in itertools.chain([first], parts):
                part.tofile(file)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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


class Clips(IterableDataset):
    """Batches of training clips, each with another member of its family as a source.

    `mel` and `source_mel`, coarse `(batch, channels, 64, frames)` float32 in dB; `quantiles` and `source`, `(batch,
    width)` float32; `known`, `(batch, 1)` float32, 1 where the dataset has families and so a source, else 0. All
    fields of a row are of one clip, whatever the order.

    A pass takes every clip once: blocks in random order, and the clips of some 16,000 at a time shuffled, so that what
    is read lies close together.

    Args:
        path: `train.h5`, `val.h5` or `test.h5`. It is opened by each worker, on first use.
        endless: shuffle and start over for ever (training), or go through once in order.
        skip: batches already seen by an interrupted training; whole passes among them are not repeated.
        fields: more of the same clips, whole and as stored: `audio`, `mel_spec`, `music2latent`, `param_array`.
        transform: of a batch, in the loader process; `lambda b: b | {"mel": coarse(log_mel(change(b["audio"])))}`.
    """

    def __init__(
        self,
        path: Path,
        space: ParameterSpace,
        batch_size: int,
        endless: bool,
        seed: int = 0,
        skip: int = 0,
        fields: Sequence[str] = (),
        transform: Callable[[Batch], Batch] | None = None,
    ):
        self.path, self.space, self.batch_size = Path(path), space, batch_size
        self.endless, self.seed, self.skip = endless, seed, skip
        self.fields, self.transform = fields, transform
        self.clips = len(compact_copy(path))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        records, whole = compact_copy(self.path), Rows(self.path, self.fields) if self.fields else None
        with open_split(self.path) as file:
            family = 1 + int(file.attrs.get("edits", 0))
        rng = np.random.default_rng([self.seed, self.skip, part])

        def batch(rows: np.ndarray) -> Batch:
            away = rng.integers(1, family, len(rows)) if family > 1 else 0
            own, other = records[rows], records[rows - rows % family + (rows + away) % family]
            found = {
                "mel": torch.from_numpy(own["mel"].astype(np.float32)),
                "source_mel": torch.from_numpy(other["mel"].astype(np.float32)),
                "quantiles": torch.from_numpy(self.space.to_quantiles(own["vector"])),
                "source": torch.from_numpy(self.space.to_quantiles(other["vector"])),
                "known": torch.full((len(rows), 1), float(family > 1)),
            }
            if whole:
                found |= {name: torch.from_numpy(values) for name, values in whole[rows].items()}
            return self.transform(found) if self.transform else found

        if not self.endless:
            for start in range(0, self.clips, self.batch_size)[part::parts]:
                yield batch(np.arange(start, min(start + self.batch_size, self.clips)))
            return
        waiting = np.empty(0, int)
        for rows in self._shuffled():
            waiting = np.concatenate([waiting, rows[part::parts]])
            while len(waiting) >= self.batch_size:
                yield batch(waiting[: self.batch_size])
                waiting = waiting[self.batch_size :]

    def _shuffled(self) -> Iterator[np.ndarray]:
        """Clips in random order, for ever."""
        blocks = -(-self.clips // BLOCK)
        for done in itertools.count(self.skip * self.batch_size // self.clips):
            rng = np.random.default_rng([self.seed, done])
            for mixed in np.array_split(rng.permutation(blocks), -(-blocks // MIXED)):
                rows = (mixed[:, None] * BLOCK + np.arange(BLOCK)).ravel()
                yield rng.permutation(rows[rows < self.clips])


class ClipData(lightning.LightningDataModule):
    """A dataset folder as Lightning takes it.

    Args:
        folder: what `generate` wrote, or a folder of the synth-permutations family.
        batch_size: clips per training step.
        workers: loader processes; 0 reads in the training process, which is enough for a CPU.
        skip, fields, transform: see `Clips`.
        space: name or path of the space, for a dataset whose attributes do not say it.

    Attributes:
        space: the dataset's own.
        seeded: whether `generate` made it, so that its clips can be drawn again.
        mean, std: of a coarse band over training clips and times, float32 `(channels, bands, 1)`, in dB.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        skip: int = 0,
        space: str | Path | None = None,
        fields: Sequence[str] = (),
        transform: Callable[[Batch], Batch] | None = None,
    ):
        super().__init__()
        self.folder, self.batch_size, self.workers = Path(folder), batch_size, workers
        self.seed, self.skip, self.fields, self.transform = seed, skip, fields, transform
        with open_split(self.folder / "train.h5") as file:
            self.space = read_space(file, space)
            self.seeded = "seed" in file.attrs
            self.clips = len(file["param_array"])
        if self.clips < batch_size:
            raise ValueError(f"{self.clips} training clips are fewer than the batch size {batch_size}")
        Rows(self.folder / "train.h5", fields)  # are they there?
        mel = compact_copy(self.folder / "train.h5")["mel"]
        mel = mel[:: -(-len(mel) // MEASURED)]
        mean, std = mean_and_std(mel[first : first + CHUNK] for first in range(0, len(mel), CHUNK))
        self.mean = torch.from_numpy(mean.mean(axis=-1, keepdims=True))
        square = (std**2 + mean**2).mean(axis=-1, keepdims=True)
        std = (torch.from_numpy(square) - self.mean**2).clamp_min(0).sqrt()
        self.std = std.clamp_min(1.0)  # a band that never sounds would have none

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.batch_size, True, self.seed, self.skip, self.workers)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", VALIDATION_BATCH, False)

    def _loader(self, split: str, batch_size: int, endless: bool, seed=0, skip=0, workers=0) -> DataLoader:
        path, more = self.folder / f"{split}.h5", (self.fields, self.transform)
        clips = Clips(path, self.space, batch_size, endless, seed, skip, *more)
        return DataLoader(clips, batch_size=None, num_workers=workers)
