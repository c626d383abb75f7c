"""A library: what the training clips sound like, small enough to travel inside a checkpoint.

A sound is kept as a few bytes, its coarse spectrogram on the principal axes of all. A patch is not kept at all: clip
`i` of a dataset is drawn again from `(space, seed, i)`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from synthnb.data.draw import draw
from synthnb.data.rows import Rows
from synthnb.data.shards import DatasetError, clip_numbers, reading_split, unpack
from synthnb.features import coarse
from synthnb.space import ParameterSpace

AXES = 48  # bytes a sound
FITTED = 10_000  # clips, evenly spread, that the axes are fitted to
CHUNK = 256
CHECKED = 16  # patches
ABSENT = 255  # in place of an attempt: not in the library
CELLS = (2, 2)  # of a coarse spectrogram that are averaged into one: 4 bands, 8 frames


def cells(mel: torch.Tensor) -> torch.Tensor:
    """Coarse spectrograms `(n, channels, bands, frames)` in dB, coarser still, as rows `(n, cells)` float32."""
    return torch.nn.functional.avg_pool2d(mel.float(), CELLS).flatten(1)


def nearest(parts: Iterable[torch.Tensor], point: torch.Tensor, count: int, order: int) -> list[int]:
    """Which rows, of all in `parts` `(n, width)`, are nearest to `point` in the norm of that order, nearest first."""
    gaps = torch.cat([torch.linalg.vector_norm(part - point, order, dim=1) for part in parts])
    return gaps.topk(min(count, len(gaps)), largest=False).indices.tolist()


@dataclass(frozen=True)
class Library:
    """Clips drawn from the prior, found by their sound.

    Attributes:
        space: of their patches.
        seed: that they were drawn with.
        first: number of the first of them among the draws of that seed.
        attempts: uint8, of every draw from `first` on which was loud enough; `ABSENT` if it is not in the library.
        codes: int8 `(clips, AXES)`, positions on the axes.
        mean: float32 `(cells,)`; `axes`: float32 `(AXES, cells)`, unit vectors times the step of a code.
        digest: of the first patches. Raises `ValueError` if they are drawn otherwise here than where it was made.
    """

    space: ParameterSpace
    seed: int
    first: int
    attempts: torch.Tensor
    codes: torch.Tensor
    mean: torch.Tensor
    axes: torch.Tensor
    digest: str

    def __post_init__(self):
        if _digest(np.stack([self[i] for i in range(min(CHECKED, len(self)))])) != self.digest:
            raise ValueError(
                f"NumPy {np.__version__} draws other patches than the one that its library was made with"
            )

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> np.ndarray:
        """The vector `(width,)` of a clip."""
        at = int(self._present[index])
        return self.space.encode(*draw(self.space, self.seed, self.first + at, int(self.attempts[at])))

    @functools.cached_property
    def _present(self) -> np.ndarray:
        return np.flatnonzero(self.attempts.numpy() != ABSENT)

    @staticmethod
    def check(folder: str | Path) -> tuple[ParameterSpace, int, np.ndarray, np.ndarray, np.ndarray]:
        """Raise `DatasetError` if no library can be built from a dataset; it takes no time.

        Returns:
            Space and seed; of the training clips that were drawn from the prior their rows in `train.h5`, their numbers
            among the seed's draws, and which attempt was loud enough.
        """
        train = Path(folder) / "train.h5"
        with reading_split(train) as file:
            if "seed" not in file.attrs or "attempts" not in file:
                raise DatasetError(f"{folder} was not made by generate: its clips cannot be drawn again")
            numbers = clip_numbers(file)
            family, seed = 1 + int(file.attrs["edits"]), int(file.attrs["seed"])
            space = ParameterSpace.parse(file.attrs["space"])
        attempts = Rows(train, ["attempts"])[range(len(numbers))]["attempts"]
        rows = np.flatnonzero((numbers % family == 0) & (attempts < ABSENT))
        if not len(rows):
            raise DatasetError(f"{folder} has no training clips yet that were drawn from the prior")
        draws, attempts = numbers[rows] // family, attempts[rows]
        some = np.unique(np.linspace(0, len(rows) - 1, CHECKED).astype(int))
        for i, vector in zip(some, Rows(train, ["param_array"])[rows[some]]["param_array"]):
            if not np.array_equal(space.encode(*draw(space, seed, draws[i], attempts[i])), vector):
                raise DatasetError(
                    f"training clip {rows[i]} of {folder} is not what seed {seed} draws from '{space.name}'; it was "
                    "made by another version of synthnb or NumPy"
                )
        return space, seed, rows, draws, attempts

    @classmethod
    def build(cls, folder: str | Path) -> Library:
        """From the training clips of a dataset that `generate` made, those drawn from the prior; edits are left out.

        Of a folder that is still being filled, from those that are there. Raises `DatasetError` as `check` does.
        """
        space, seed, rows, draws, attempts = cls.check(folder)
        clips = Rows(Path(folder) / "train.h5", ["coarse"])

        def sounds(rows: np.ndarray) -> Iterator[torch.Tensor]:
            for at in range(0, len(rows), CHUNK):
                yield cells(torch.from_numpy(unpack(clips[rows[at : at + CHUNK]]["coarse"])))

        mean, axes = _principal_axes(torch.cat(list(sounds(rows[:: -(-len(rows) // FITTED)]))))
        places = torch.cat([(sound - mean) @ axes.T for sound in sounds(rows)])
        spread = places[:: -(-len(places) // FITTED)].abs().amax(dim=0).clamp_min(1e-6)
        axes = axes * (spread / 127)[:, None]
        codes = (places / spread * 127).round().clamp(-127, 127).to(torch.int8)
        kept = np.full(draws[-1] - draws[0] + 1, ABSENT, np.uint8)
        kept[draws - draws[0]] = attempts
        digest = _digest(Rows(Path(folder) / "train.h5", ["param_array"])[rows[:CHECKED]]["param_array"])
        return cls(space, seed, int(draws[0]), torch.from_numpy(kept), codes, mean, axes, digest)

    def nearest(self, mel: torch.Tensor, count: int) -> np.ndarray:
        """Vectors `(count, width)` of the clips that sound most like `mel (channels, bands, frames)`, nearest first."""
        place = _project(cells(coarse(mel[None])) - self.mean, self.axes)
        steps = self.axes.norm(dim=1)
        return np.stack([self[i] for i in nearest([self.codes * steps], place * steps, count, order=2)])

    def description(self) -> dict:
        """What a checkpoint keeps of it in words, beside its `tensors` and the space."""
        return {"seed": self.seed, "first": self.first, "digest": self.digest}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it in numbers."""
        return {"attempts": self.attempts, "codes": self.codes, "mean": self.mean, "axes": self.axes}


def _principal_axes(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `(cells,)` of rows `(n, cells)` and the `AXES` directions `(AXES, cells)` in which they vary most."""
    mean = rows.mean(dim=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, directions = torch.svd_lowrank(rows - mean, min(AXES + 16, *rows.shape))
    return mean, directions.T[:AXES].contiguous()


def _digest(vectors: np.ndarray) -> str:
    return hashlib.sha256(vectors.astype(np.float32).tobytes()).hexdigest()[:16]


def _project(rows: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Positions `(n, AXES)` on axes that are orthogonal, but not of unit length."""
    return rows @ (axes / axes.square().sum(dim=1, keepdim=True)).T
