"""Feeding a training: shuffled batches whose fields stay together, from a folder that may still be being filled."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from synthnb.data.rows import SEEN, Rows
from synthnb.data.shards import LOWEST, STEP, DatasetError, read_space, reading_split, unpack
from synthnb.data.splits import mean_and_std
from synthnb.space import ParameterSpace

CHUNK = 256  # clips read at once
VALIDATION_BATCH = 256
MEASURED = 10_000  # clips, evenly spread, that mean and standard deviation are taken of

Batch = dict[str, torch.Tensor]


class Clips(IterableDataset):
    """Batches of clips, each with another member of its family as a source.

    `mel` and `source_mel`, coarse `(batch, channels, 64, frames)` float32 in dB; `quantiles` and `source`, `(batch,
    width)` float32; `known`, `(batch, 1)` float32, 1 where the dataset has families and so a source, else 0. All
    fields of a row are of one clip, whatever the order.

    Endless, a pass takes every clip once, in random order. Batch number s depends on the seed, s, the rank and the
    clips that are there alone; clips that come while a dataset is being rendered are taken in at once.

    Args:
        path: `train.h5`, `val.h5` or `test.h5`. It is opened by each worker, on first use.
        endless: shuffle and start over for ever (training), or go through once in order.
        skip: batches already seen by an interrupted training.
        fields: more of the same clips, whole and as stored: `audio`, `mel_spec`, `music2latent`, `param_array`.
        transform: of a batch, in the loader process; `lambda b: b | {"mel": coarse(log_mel(change(b["audio"])))}`.
        rank, world: which of how many processes that train together this is; each takes other clips.
        packed: leave the spectrograms as they are stored, `mel_codes` and `source_mel_codes`, for `unpacked`: a quarter
            of the bytes on their way from a loader process to a GPU.
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
        rank: int = 0,
        world: int = 1,
        packed: bool = False,
    ):
        self.path, self.space, self.batch_size = Path(path), space, batch_size
        self.endless, self.seed, self.skip = endless, seed, skip
        self.fields, self.transform = fields, transform
        self.rank, self.world, self.packed = rank, world, packed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        seen = Rows(self.path, SEEN)
        whole = Rows(self.path, self.fields) if self.fields else None
        with reading_split(self.path) as file:
            family = 1 + int(file.attrs.get("edits", 0))

        def batch(rows: np.ndarray, step: int) -> Batch:
            rng = np.random.default_rng([self.seed, step, self.rank, 1])
            away = rng.integers(1, family, len(rows)) if family > 1 else 0
            others = rows - rows % family + (rows + away) % family
            found = seen[np.concatenate([rows, others]) if family > 1 else rows]  # once is quicker than twice
            codes = torch.from_numpy(found["coarse"]).split(len(rows))
            quantiles = torch.from_numpy(self.space.to_quantiles(found["param_array"])).split(len(rows))
            made = {
                "mel_codes": codes[0],
                "source_mel_codes": codes[-1],
                "quantiles": quantiles[0],
                "source": quantiles[-1],
                "known": torch.full((len(rows), 1), float(family > 1)),
            }
            if whole:
                made |= {name: torch.from_numpy(values) for name, values in whole[rows].items()}
            made = made if self.packed else unpacked(made)
            return self.transform(made) if self.transform else made

        if not self.endless:
            for start in range(0, len(seen), self.batch_size)[part::parts]:
                yield batch(np.arange(start, min(start + self.batch_size, len(seen))), start)
            return
        for step in itertools.count(self.skip + part, parts):
            seen.grow()
            if whole:
                whole.grow()
            yield batch(self._chosen(step, len(seen)), step)

    def _chosen(self, step: int, clips: int) -> np.ndarray:
        """The clips of a training batch: where it begins, so many passes are over, each in an order of its own."""
        first = (step * self.world + self.rank) * self.batch_size
        passes, places = np.divmod(np.arange(first, first + self.batch_size), clips)
        return np.concatenate(
            [_order(self.seed, p, clips)[places[passes == p]] for p in range(passes[0], passes[-1] + 1)]
        )


def unpacked(batch: Batch) -> Batch:
    """A batch whose spectrograms are in dB, float32, wherever it is."""
    for name in ("mel", "source_mel"):
        if (codes := batch.pop(f"{name}_codes", None)) is not None:
            on_cpu = codes.device.type == "cpu"  # where NumPy takes a third of the time
            batch[name] = torch.from_numpy(unpack(codes.numpy())) if on_cpu else codes * STEP + LOWEST
    return batch


@functools.lru_cache(2)
def _order(seed: int, number: int, clips: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(clips)


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
        audible: how audible each parameter is, in dB by name (see `audibility`); None if that was not measured.
        clips: for training, so many.
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
        train = self.folder / "train.h5"
        with reading_split(train) as file:
            self.space, self.seeded = read_space(file, space), "seed" in file.attrs
            dB, names = file.attrs.get("audible"), [p.name for p in self.space]
            self.audible = None if dB is None else pd.Series(dB, names, name="dB")
        if not (self.folder / "val.h5").is_file():
            raise DatasetError(f"{self.folder} has no val.h5 yet: its first clips are still being rendered")
        rows = Rows(train, SEEN)
        Rows(train, fields)  # are they there?
        self.clips = len(rows)
        if self.clips < batch_size:
            more = "" if (self.folder / "stats.npz").is_file() else "; more of them are still being rendered"
            raise DatasetError(
                f"{self.clips} training clips are fewer than the batch size {batch_size}{more}"
            )
        some = rows.stream(CHUNK, every=-(-self.clips // MEASURED))
        mean, std = mean_and_std(unpack(codes) for codes, _ in some)
        self.mean = torch.from_numpy(mean.mean(axis=-1, keepdims=True))
        square = (std**2 + mean**2).mean(axis=-1, keepdims=True)
        std = (torch.from_numpy(square) - self.mean**2).clamp_min(0).sqrt()
        self.std = std.clamp_min(1.0)  # a band that never sounds would have none

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.batch_size, True, self.seed, self.skip, self.workers)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", VALIDATION_BATCH, False)

    def on_after_batch_transfer(self, batch: Batch, _: int) -> Batch:
        """Lightning calls this where the batch is needed."""
        return unpacked(batch)

    def _loader(self, split: str, batch_size: int, endless: bool, seed=0, skip=0, workers=0) -> DataLoader:
        path, more = self.folder / f"{split}.h5", (self.fields, self.transform)
        world = torch.distributed.is_available() and torch.distributed.is_initialized()
        place = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if world else (0, 1)
        packed = self.transform is None  # which may need it in dB
        clips = Clips(path, self.space, batch_size, endless, seed, skip, *more, *place, packed)
        return DataLoader(clips, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available())
