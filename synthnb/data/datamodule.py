"""Feeding a training: batches from the virtual datasets, well shuffled, read in long stretches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from synthnb.data.shards import open_split
from synthnb.space import ParameterSpace

BLOCK = 64  # consecutive clips read at once: disks and HDF5 like long reads
POOL = 32  # blocks shuffled together: 2048 clips, 210 MB of mono features

Batch = dict[str, torch.Tensor]


class Clips(IterableDataset):
    """Batches of `{"mel": (batch, channels, bands, frames) float32 dB, "quantiles": (batch, width) float32}`.

    Args:
        path: `train.h5`, `val.h5` or `test.h5`. It is opened by each worker, on first use.
        endless: shuffle and start over for ever (training), or go through once in order.
        skip: batches already seen by an interrupted training; whole passes among them are not repeated.
    """

    def __init__(
        self, path: Path, space: ParameterSpace, batch_size: int, endless: bool, seed: int = 0, skip: int = 0
    ):
        self.path, self.space, self.batch_size = Path(path), space, batch_size
        self.endless, self.seed, self.skip = endless, seed, skip
        with open_split(path) as file:
            self.clips = len(file["param_array"])

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        with open_split(self.path) as file:
            starts = np.arange(0, self.clips, BLOCK)
            if not self.endless:
                for start in starts[part::parts]:
                    yield self._batch(*self._read(file, start))
                return
            done = self.skip * self.batch_size // self.clips
            while True:
                rng = np.random.default_rng([self.seed, done])
                yield from self._pass(file, rng.permutation(starts)[part::parts], rng)
                done += 1

    def _pass(self, file, starts: np.ndarray, rng: np.random.Generator) -> Iterator[Batch]:
        for first in range(0, len(starts), POOL):
            blocks = [self._read(file, start) for start in starts[first : first + POOL]]
            mel, vectors = (np.concatenate(part) for part in zip(*blocks))
            order = rng.permutation(len(vectors))
            for at in range(0, len(order) - self.batch_size + 1, self.batch_size):
                rows = order[at : at + self.batch_size]
                yield self._batch(mel[rows], vectors[rows])

    @staticmethod
    def _read(file, start: int) -> tuple[np.ndarray, np.ndarray]:
        stretch = slice(int(start), int(start) + BLOCK)
        return file["mel_spec"][stretch], file["param_array"][stretch]

    def _batch(self, mel: np.ndarray, vectors: np.ndarray) -> Batch:
        quantiles = self.space.to_quantiles(vectors)
        return {"mel": torch.from_numpy(mel).float(), "quantiles": torch.from_numpy(quantiles)}


class ClipData(lightning.LightningDataModule):
    """A dataset folder as Lightning takes it.

    Args:
        folder: what `generate` wrote.
        batch_size: clips per training step.
        workers: loader processes; 0 reads in the training process, which is enough for a CPU.
        skip: see `Clips`.

    Attributes:
        space: the dataset's own, read from its attributes.
        mean, std: of a band over all training clips and times, float32 `(channels, bands, 1)`, in dB.
    """

    def __init__(self, folder: str | Path, batch_size: int, workers: int = 0, seed: int = 0, skip: int = 0):
        super().__init__()
        self.folder, self.batch_size, self.workers = Path(folder), batch_size, workers
        self.seed, self.skip = seed, skip
        with open_split(self.folder / "train.h5") as file:
            self.space = ParameterSpace.parse(file.attrs["space"])
            self.clips = len(file["param_array"])
        if self.clips < batch_size * max(
            1, workers
        ):  # a loader process that fills no batch would wait for ever
            each = f" for each of {workers} workers" if workers > 1 else ""
            raise ValueError(f"{self.clips} training clips are fewer than the batch size {batch_size}{each}")
        with np.load(self.folder / "stats.npz") as stats:
            mean = stats["mean"].mean(axis=-1, keepdims=True)
            square = (stats["std"] ** 2 + stats["mean"] ** 2).mean(axis=-1, keepdims=True)
        variance = np.maximum(square - mean**2, 1.0)  # a band that never sounds would have none
        self.mean, self.std = torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance))

    def train_dataloader(self) -> DataLoader:
        clips = Clips(self.folder / "train.h5", self.space, self.batch_size, True, self.seed, self.skip)
        return DataLoader(clips, batch_size=None, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Clips(self.folder / "val.h5", self.space, BLOCK, False), batch_size=None)
