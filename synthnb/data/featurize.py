"""Add a feature to a dataset that is already there: resumable, in batches, on the GPU where there is one.

A shard gets its column in a copy that then takes the shard's place, so that at any moment it has either all of it or
nothing. The virtual files come last, when every shard has the column. A second run does only what is missing.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import joblib
import numpy as np
import torch
from tqdm import tqdm

from synthnb.data.draw import render
from synthnb.data.shards import (
    SPLITS,
    Column,
    DatasetError,
    fields_of,
    find_source,
    read_pieces,
    reading,
    reading_split,
)
from synthnb.data.splits import sweep, write_stats, write_virtual
from synthnb.features import log_mel
from synthnb.features.latents import Music2Latent
from synthnb.synths import open_space

FEATURES = ("mel_spec", "music2latent")

Compute = Callable[[torch.Tensor], torch.Tensor]  # audio (clips, channels, samples) to values (clips, ...)


def add_features(
    folder: str | Path,
    name: str,
    batch: int = 8,
    device: str | None = None,
    weights: str | Path | None = None,
    workers: int = -1,
    progress: bool = True,
) -> Path:
    """Add the column `name` to every shard of a dataset that lacks it, and to `train.h5`, `val.h5` and `test.h5`.

    It is computed from the stored audio or, where that was not kept, from the clips rendered again; it is stored as
    float16. Stored audio is float16 too, which changes spectrograms by 0.01 dB on average, but cells near the floor by
    up to 3 dB. One shard after the other is on disk twice. Don't generate into the folder meanwhile.

    Args:
        folder: what `generate` wrote, or another folder with virtual files in that layout.
        name: `mel_spec` (see `log_mel`) or `music2latent` (see `Music2Latent`).
        batch: clips computed at once on a GPU; `music2latent` needs about 1 GB for a stereo clip of 4 s.
        device: `cpu` or `cuda`; the GPU if there is one.
        weights: of Music2Latent, see there.
        workers: processes that render where no audio was kept; -1 takes all cores.
        progress: show a bar that counts clips.

    Returns:
        The folder.

    Raises:
        DatasetError: no dataset, a shard is missing, or others have latents of other weights.
        LatentsError: Music2Latent or its weights are missing.
    """
    if name not in FEATURES:
        raise DatasetError(f"no feature '{name}'; known: {', '.join(FEATURES)}")
    folder = Path(folder)
    pieces = {}  # of each split, with paths from the folder, so that it can be moved
    for path in (folder / f"{split}.h5" for split in SPLITS):
        if path.stem == "train" or path.exists():
            with reading_split(path) as file:
                pieces[path] = [
                    piece._replace(file=os.path.relpath(find_source(path, piece.file), folder))
                    for piece in read_pieces(file)
                ]
    shards = sorted({folder / piece.file for found in pieces.values() for piece in found})
    for parent in {path.parent for path in shards}:
        for leftover in parent.glob(f"*.partial-{name}-*"):
            leftover.unlink()
    sweep(folder)
    lengths, origins = {}, {}
    for shard in shards:
        with reading_split(shard) as file:
            lengths[shard] = len(file["param_array"])
            if name in file:
                origins[shard] = file[name].attrs.get("origin", "unknown weights")
    todo = [shard for shard in shards if shard not in origins]
    if todo:
        compute, origin = _open(name, device or ("cuda" if torch.cuda.is_available() else "cpu"), weights)
        for shard, other in origins.items():
            if origin and other != origin:
                raise DatasetError(f"{shard} has {name} of {other}, not of {origin}; use the same weights")
        total = sum(lengths.values())
        done = total - sum(lengths[shard] for shard in todo)
        with tqdm(total=total, initial=done, unit="clip", disable=not progress) as bar:
            for shard in todo:
                for clips in _add_column(shard, name, compute, origin, batch, workers):
                    bar.update(clips)
    with reading(shards[0]) as file:
        column = fields_of(file)[name]
    for path, found in pieces.items():
        with reading(path) as file:
            fields, attributes = fields_of(file), dict(file.attrs)
        if name not in fields:
            write_virtual(path, fields | {name: column}, found, attributes)
    if name == "mel_spec" and (todo or not (folder / "stats.npz").is_file()):
        write_stats(folder)
    return folder


def _open(name: str, device: str, weights: str | Path | None) -> tuple[Compute, str]:
    """What computes a feature, and what is noted of its origin."""
    if name == "mel_spec":
        return lambda audio: log_mel(audio.to(device)), ""
    encoder = Music2Latent(weights, device)
    return encoder, encoder.origin


def _add_column(
    path: Path, name: str, compute: Compute, origin: str, batch: int, workers: int
) -> Iterator[int]:
    """Give a shard one more column; yields how many clips each step did."""
    aside = path.with_suffix(f".partial-{name}-{secrets.token_hex(4)}")
    try:
        shutil.copy(path, aside)
        with h5py.File(aside, "r+") as file:
            column = None
            for audio in _audio(file, path, batch, workers):
                values = compute(torch.from_numpy(audio)).half().cpu().numpy()
                column = column or Column(
                    file, name, len(file["param_array"]), values.shape[1:], values.dtype
                )
                column.append(values)
                yield len(values)
            column.finish()
            if origin:
                column.dataset.attrs["origin"] = origin
        with open(aside, "rb") as written:  # a power cut must not cost the shard whose place it takes
            os.fsync(written.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _audio(file: h5py.File, path: Path, batch: int, workers: int) -> Iterator[np.ndarray]:
    """A shard's sound, float32 `(clips, channels, samples)`, batch by batch: read, or rendered from the parameters."""
    starts = range(0, len(file["param_array"]), batch)
    if "audio" in file:
        for first in starts:
            yield file["audio"][first : first + batch].astype(np.float32)
        return
    if "space" not in file.attrs:
        raise DatasetError(f"{path} has neither audio nor the space that it could be rendered with")
    vectors = file["param_array"][:]
    at_once = 2 * joblib.effective_n_jobs(workers)  # no more, for they would all wait in memory
    with joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=1) as pool:
        for first in range(0, len(starts), at_once):
            some = starts[first : first + at_once]
            yield from pool(
                joblib.delayed(_render)(file.attrs["space"], vectors[i : i + batch]) for i in some
            )


def _render(text: str, vectors: np.ndarray) -> np.ndarray:
    space, synth = open_space(text)
    return np.stack([render(synth, *space.decode(v), space.seconds) for v in vectors])
