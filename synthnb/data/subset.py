"""A smaller dataset over another one's shards: nothing is copied, nothing is rendered."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from synthnb.data.shards import (
    SPLITS,
    DatasetError,
    Piece,
    fields_of,
    find_source,
    open_split,
    read_pieces,
    read_space,
    write_stats,
    write_virtual,
)


def write_subset(
    folder: str | Path, out: str | Path, clips: int, seed: int = 0, space: str | Path | None = None
) -> Path:
    """A dataset of `clips` training clips, and all validation and test clips, of the one in `folder`.

    It holds paths from `out` to the shards: both folders can be moved together. The clips are a run of whole families
    that begins anywhere: as they don't depend on each other, that is as good as a choice of single ones, and quicker
    to read.

    Args:
        folder: what `generate` wrote, another subset, or a folder of the synth-permutations family.
        out: a new folder.
        seed: decides where the run begins.
        space: name or path of the space, where `folder` does not say it; `out` will.

    Returns:
        `out`.

    Raises:
        DatasetError: `folder` is incomplete, `out` is not empty, or that many clips or parts of families are not there.
    """
    folder, out = Path(folder), Path(out)
    files = {split: open_split(folder / f"{split}.h5") for split in SPLITS}
    try:
        train = files["train"]
        total, family = len(train["param_array"]), 1 + int(train.attrs.get("edits", 0))
        if not 0 < clips <= total or clips % family:
            raise DatasetError(
                f"{clips} clips of {folder}: 1 to {total} are there"
                + (f", and only whole families of {family}" if family > 1 else "")
            )
        found = read_space(train, space)
        make_empty(out)
        first = family * int(np.random.default_rng(seed).integers((total - clips) // family + 1))
        before = sum(len(files[split]["param_array"]) for split in ("val", "test"))
        first_clip = int(train.attrs.get("first_clip", before)) + first
        for split, file in files.items():
            low, high = (first, first + clips) if split == "train" else (0, len(file["param_array"]))
            attributes = {
                **file.attrs,
                "space": found.text,
                "space_name": found.name,
                "first_clip": first_clip,
            }
            pieces = _between(read_pieces(file), low, high, folder, out)
            write_virtual(out / f"{split}.h5", fields_of(file), pieces, attributes)
    finally:
        for file in files.values():
            file.close()
    write_stats(out)
    return out


def make_empty(out: Path) -> None:
    """Create a folder. Raises `DatasetError` if it is there and holds something."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise DatasetError(f"{out} is not empty; use a new folder")


def _between(pieces: list[Piece], low: int, high: int, folder: Path, out: Path) -> list[Piece]:
    """Rows `low` to `high` of `pieces`, with paths from `out` in place of those from `folder`."""
    chosen, at = [], 0
    for file, length, first, count in pieces:
        start, stop = max(low - at, 0), min(high - at, count)
        if start < stop:
            source = find_source(folder / "train.h5", file).resolve()
            chosen.append(Piece(os.path.relpath(source, out.resolve()), length, first + start, stop - start))
        at += count
    return chosen
