"""Feeding a training: batches drawn at random from a compact copy of a dataset's spectrograms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from synthnb.data.shards import DatasetError, open_split, read_space
from synthnb.space import ParameterSpace

CHUNK = 1024  # clips read at once
VALIDATION_BATCH = 256
MEASURED = 10_000  # clips, evenly spread, that mean and standard deviation are taken of

Batch = dict[str, torch.Tensor]


def coarse(mel: torch.Tensor) -> torch.Tensor:
    """Averages over 2 bands and 4 frames of a spectrogram from `log_mel`: what the encoder looks at.

    Args:
        mel: `(batch, channels, 128, frames)` in dB.

    Returns:
        `(batch, channels, 64, frames // 4)`.
    """
    return torch.nn.functional.avg_pool2d(mel, (2, 4))


def coarse_copy(path: str | Path) -> np.ndarray:
    """`coarse` of all spectrograms of a split: float16 `(clips, channels, 64, frames // 4)`, 13 KB a mono clip of 4 s.

    It is made once (a minute for 100,000 clips) and kept beside the split as `train-coarse.npy`, from where it is
    mapped, not read; in a folder that can't be written to it stays in memory.
    """
    path = Path(path)
    kept, stats = path.with_name(f"{path.stem}-coarse.npy"), path.with_name("stats.npz")
    if not stats.is_file():  # it comes last
        raise DatasetError(
            f"the dataset in {path.parent} is not complete; run notebook 01_generate_data again"
        )
    if kept.is_file() and kept.stat().st_mtime >= stats.stat().st_mtime:
        return np.load(kept, mmap_mode="r")
    with open_split(path) as file:
        mel = file["mel_spec"]
        parts = [
            coarse(torch.from_numpy(mel[first : first + CHUNK]).float()).half().numpy()
            for first in range(0, len(mel), CHUNK)
        ]
    copy = np.concatenate(parts)
    aside = kept.with_suffix(".partial.npy")
    try:
        np.save(aside, copy)
        aside.replace(kept)
    except OSError:
        aside.unlink(missing_ok=True)
        return copy
    return np.load(kept, mmap_mode="r")


class Clips(IterableDataset):
    """Batches of training clips, each with another member of its family as a source.

    `mel` and `source_mel`, coarse `(batch, channels, 64, frames)` float32 in dB; `quantiles` and `source`, `(batch,
    width)` float32; `known`, `(batch, 1)` float32, 1 where the dataset has families and so a source, else 0.

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
        self.clips = len(coarse_copy(path))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        mel = coarse_copy(self.path)
        with open_split(self.path) as file:
            quantiles = torch.from_numpy(self.space.to_quantiles(file["param_array"][:]))
            family = 1 + int(file.attrs.get("edits", 0))
        rng = np.random.default_rng([self.seed, self.skip, part])

        def batch(rows: np.ndarray) -> Batch:
            away = rng.integers(1, family, len(rows)) if family > 1 else 0
            others = rows - rows % family + (rows + away) % family
            return {
                "mel": torch.from_numpy(mel[rows].astype(np.float32)),
                "source_mel": torch.from_numpy(mel[others].astype(np.float32)),
                "quantiles": quantiles[rows],
                "source": quantiles[others],
                "known": torch.full((len(rows), 1), float(family > 1)),
            }

        if not self.endless:
            for start in range(0, self.clips, self.batch_size)[part::parts]:
                yield batch(np.arange(start, min(start + self.batch_size, self.clips)))
            return
        done = self.skip * self.batch_size // self.clips
        while True:
            order = np.random.default_rng([self.seed, done]).permutation(self.clips)[part::parts]
            for at in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield batch(order[at : at + self.batch_size])
            done += 1


class ClipData(lightning.LightningDataModule):
    """A dataset folder as Lightning takes it.

    Args:
        folder: what `generate` wrote, or a folder of the synth-permutations family.
        batch_size: clips per training step.
        workers: loader processes; 0 reads in the training process, which is enough for a CPU.
        skip: see `Clips`.
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
    ):
        super().__init__()
        self.folder, self.batch_size, self.workers = Path(folder), batch_size, workers
        self.seed, self.skip = seed, skip
        with open_split(self.folder / "train.h5") as file:
            self.space = read_space(file, space)
            self.seeded = "seed" in file.attrs
            self.clips = len(file["param_array"])
        if self.clips < batch_size * max(
            1, workers
        ):  # a loader process that fills no batch would wait for ever
            each = f" for each of {workers} workers" if workers > 1 else ""
            raise ValueError(f"{self.clips} training clips are fewer than the batch size {batch_size}{each}")
        mel = coarse_copy(self.folder / "train.h5")
        sample = torch.from_numpy(mel[:: -(-len(mel) // MEASURED)].astype(np.float32))
        self.mean = sample.mean(dim=(0, 3))[..., None]
        std = sample.std(dim=(0, 3))[..., None]
        self.std = std.clamp_min(1.0)  # a band that never sounds would have none

    def train_dataloader(self) -> DataLoader:
        clips = Clips(self.folder / "train.h5", self.space, self.batch_size, True, self.seed, self.skip)
        return DataLoader(clips, batch_size=None, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        clips = Clips(self.folder / "val.h5", self.space, VALIDATION_BATCH, False)
        return DataLoader(clips, batch_size=None)
