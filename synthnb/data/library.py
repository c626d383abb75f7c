"""A library: what the training clips sound like, small enough to travel inside a checkpoint.

A sound is kept as a few bytes, its coarse spectrogram on the principal axes of all. A patch is not kept at all: clip
`i` of a dataset is drawn again from `(space, seed, i)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import torch

from synthnb.data.draw import ATTEMPTS
from synthnb.data.feed import compact_copy
from synthnb.data.shards import DatasetError, open_split
from synthnb.features import coarse
from synthnb.space import ParameterSpace

AXES = 48  # bytes a sound
FITTED = 10_000  # clips, evenly spread, that the axes are fitted to
CHUNK = 256
SEARCHED = 4096  # rows at once
CHECKED = 16  # patches
CELLS = (2, 2)  # of a coarse spectrogram that are averaged into one: 4 bands, 8 frames


def cells(mel: torch.Tensor) -> torch.Tensor:
    """Coarse spectrograms `(n, channels, bands, frames)` in dB, coarser still, as rows `(n, cells)` float32."""
    return torch.nn.functional.avg_pool2d(mel.float(), CELLS).flatten(1)


def nearest_rows(
    index: torch.Tensor, query: torch.Tensor, count: int, scale: torch.Tensor | float = 1.0
) -> list[int]:
    """Which rows of `index (n, cells)` are nearest to `query (1, cells)`, the nearest first; `scale` weighs cells."""
    gaps = [((rows.float() - query) * scale).square().sum(dim=1) for rows in index.split(SEARCHED)]
    return torch.cat(gaps).topk(min(count, len(index)), largest=False).indices.tolist()


@dataclass(frozen=True)
class Library:
    """Clips drawn from the prior, found by their sound.

    Attributes:
        space: of their patches.
        seed: that they were drawn with.
        first: number of the first of them among the draws of that seed.
        attempts: uint8 `(clips,)`, which draw was loud enough.
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
        return _draw(self.space, self.seed, self.first + index, int(self.attempts[index]))

    @classmethod
    def build(cls, folder: str | Path, workers: int = -1, most: int | None = None) -> Library:
        """From the training clips of a dataset that `generate` made, those drawn from the prior; edits are left out.

        Raises `DatasetError` if the clips are not those that its seed draws.
        """
        folder, before = Path(folder), 0
        for split in ("val", "test"):
            with open_split(folder / f"{split}.h5") as file:
                before += len(file["param_array"])
        with open_split(folder / "train.h5") as file:
            if "seed" not in file.attrs:
                raise DatasetError(f"{folder} was not made by generate: its clips cannot be drawn again")
            before = int(file.attrs.get("first_clip", before))  # of a subset
            family, seed = 1 + int(file.attrs.get("edits", 0)), int(file.attrs["seed"])
            text = file.attrs["space"]
        records = compact_copy(folder / "train.h5")[::family][:most]
        parts = range(0, len(records), CHUNK)
        attempts = joblib.Parallel(workers)(
            joblib.delayed(_attempts)(text, seed, before // family + at, records["vector"][at : at + CHUNK])
            for at in parts
        )

        def sounds(every: int = 1) -> Iterator[torch.Tensor]:
            for at in range(0, len(records), CHUNK):
                yield cells(torch.from_numpy(np.array(records["mel"][at : at + CHUNK : every])))

        mean, axes = _principal_axes(sounds(-(-len(records) // FITTED)))
        places = torch.cat([(rows - mean) @ axes.T for rows in sounds()])
        spread = places[:: -(-len(places) // FITTED)].abs().amax(dim=0).clamp_min(1e-6)
        axes = axes * (spread / 127)[:, None]
        codes = (places / spread * 127).round().clamp(-127, 127).to(torch.int8)
        space = ParameterSpace.parse(text)
        digest = _digest(records["vector"][:CHECKED])
        return cls(space, seed, before // family, torch.cat(attempts), codes, mean, axes, digest)

    def nearest(self, mel: torch.Tensor, count: int) -> np.ndarray:
        """Vectors `(count, width)` of the clips that sound most like `mel (channels, bands, frames)`, nearest first."""
        place = _project(cells(coarse(mel[None])) - self.mean, self.axes)
        steps = self.axes.norm(dim=1)
        return np.stack([self[i] for i in nearest_rows(self.codes, place, count, steps)])

    def description(self) -> dict:
        """What a checkpoint keeps of it in words, beside its `tensors` and the space."""
        return {"seed": self.seed, "first": self.first, "digest": self.digest}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it in numbers."""
        return {"attempts": self.attempts, "codes": self.codes, "mean": self.mean, "axes": self.axes}


def _principal_axes(parts: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `(cells,)` of rows `(n, cells)` and the `AXES` directions `(AXES, cells)` in which they vary most."""
    count, total, square = 0, 0.0, 0.0
    for part in parts:
        rows = part.double()
        count, total, square = count + len(rows), total + rows.sum(0), square + rows.T @ rows
    mean = total / count
    _, directions = torch.linalg.eigh(square / count - mean[:, None] * mean)
    return mean.float(), directions.T.flip(0)[:AXES].float().contiguous()


def _digest(vectors: np.ndarray) -> str:
    return hashlib.sha256(vectors.astype(np.float32).tobytes()).hexdigest()[:16]


def _draw(space: ParameterSpace, seed: int, index: int, attempt: int) -> np.ndarray:
    """The vector of an attempt at a clip, as `generate` draws it."""
    return space.encode(*space.sample(np.random.default_rng([seed, index, attempt])))


def _project(rows: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Positions `(n, AXES)` on axes that are orthogonal, but not of unit length."""
    return rows @ (axes / axes.square().sum(dim=1, keepdim=True)).T


def _attempts(text: str, seed: int, first: int, vectors: np.ndarray) -> torch.Tensor:
    space, attempts = ParameterSpace.parse(text), []
    for index, vector in enumerate(vectors, first):
        for attempt in range(min(ATTEMPTS, 256)):
            if np.array_equal(_draw(space, seed, index, attempt), vector):
                break
        else:
            raise DatasetError(f"training clip {index} is not what seed {seed} draws from '{space.name}'")
        attempts.append(attempt)
    return torch.tensor(attempts, dtype=torch.uint8)
