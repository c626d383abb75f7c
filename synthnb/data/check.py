"""Whether all of a dataset is as it should be."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch

from synthnb.data.describe import RECIPE, shards_of
from synthnb.data.shards import (
    SPLITS,
    DamagedFile,
    DatasetError,
    Piece,
    UnreachableFile,
    fields_of,
    find_source,
    need_decompressors,
    read_pieces,
    read_space,
    reading,
    shard_lengths,
)
from synthnb.data.splits import stats_of
from synthnb.space import ParameterSpace

CHUNK = 64  # clips read at once
RANGES = {"mel_spec": (-80.1, 0.1), "param_array": (-1e-6, 1 + 1e-6)}  # dB below a clip's maximum; a vector's
STATS_ERROR = 0.05  # dB
MAKE_AGAIN = "run the command again that made the dataset"


class Model(NamedTuple):
    """What the other shards are held to: the first that can be read."""

    path: Path
    fields: dict
    recipe: dict[str, str]
    space: ParameterSpace | None


def check(folder: str | Path, space: str | Path | None = None) -> list[str]:
    """Read every clip of a dataset once and its spectrograms twice; returns the problems found, one line each.

    Shards: readable, with the checksums of those that have any; as long as they should be, none missing, none half
    written; of one recipe. Clips: finite, spectrograms and vectors in their ranges, one-hot blocks whole, none never
    written, none twice (an edit may equal its clip). Splits: readable, of the shards' recipe and fields, of different
    clips, with whole families. `stats.npz`: that of the training clips. Memory is that of 64 clips, and 16 bytes for
    every clip. A dataset that is still being rendered is one problem, which says how far it is.

    Args:
        folder: of a dataset, a subset (the shards behind it are read) or one of the synth-permutations family.
        space: its name or path, for a dataset that does not say it; without, vectors are held to [0, 1] alone.

    Raises:
        DatasetError: there is no dataset, the space does not fit it, or its decompressor is not installed.
    """
    folder = Path(folder)
    shards, missing = shards_of(folder)
    if not shards and not missing:
        raise DatasetError(
            f"no dataset in {folder}; render one with 'synthnb generate' or notebook 01_generate_data"
        )
    like = _model(shards, space)
    recipe = like.recipe if like else {}
    family, size = 1 + _whole(recipe.get("edits")), _whole(recipe.get("shard_size"))
    own = size > 0 and all(path.parent == folder for path in shards)
    wanted = _wanted(folder)
    lengths, gaps = _expected(shards, size, wanted) if own else ({}, [])
    again = (
        "delete it and run the same generate command again, which renders the same clips"
        if "seed" in recipe
        else "get it again from where it came"
    )
    problems, hashes = [], {}
    if "shard_size" in recipe and not size:
        problems.append(
            f"shards of {recipe['shard_size']} clips, as they say, can't be: make the dataset again in an empty folder"
        )
    for path in shards:
        faults, hashes[path] = _check_shard(path, like, lengths.get(path.name), again)
        problems += [f"{path.name}: {fault}" for fault in faults]
    clips = {path.resolve(): len(found) for path, found in hashes.items()}
    filling = bool(wanted) and sum(clips.values()) < wanted and not (folder / "stats.npz").is_file()
    problems += _check_splits(folder, like, family, clips, filling)
    if filling:
        gaps = []
        problems.append(
            f"incomplete, {sum(clips.values()):,} of {wanted:,} clips: they are still being rendered, or run the same "
            "command again"
        )
    else:
        problems += [f"{path.name}: left by an interrupted run, or one is going on; run the same command again"
                     for path in sorted(folder.glob("*.partial*"))]  # fmt: skip
    advice = "run the same generate command again" if own else "put it back where it was"
    problems += [f"{name}: missing; {advice}" for name in sorted({*missing, *gaps})]
    problems += _duplicates(hashes, family, size if own else 0)
    return problems + ([] if filling else _check_stats(folder, readable=not problems))


def _wanted(folder: Path) -> int | None:
    """How many clips a dataset will have in the end; None if that is not said."""
    for split in SPLITS:
        with contextlib.suppress(DatasetError), reading(folder / f"{split}.h5") as file:
            return sum(int(file.attrs[name]) for name in SPLITS)
    return None


def _model(shards: list[Path], space: str | Path | None) -> Model | None:
    for path in shards:
        try:
            with reading(path) as file:
                need_decompressors(file)
                clips = len(file["param_array"])
                said = clips and ("space" in file.attrs or space is not None)
                recipe = {name: str(file.attrs[name]) for name in RECIPE if name in file.attrs}
                return Model(path, fields_of(file), recipe, read_space(file, space) if said else None)
        except (DamagedFile, UnreachableFile):
            continue
    return None


def _whole(text: str | None) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,9}", text) else 0


def _number(shard: Path) -> int:
    return int(shard.stem.removeprefix("shard-"))


def _expected(shards: list[Path], size: int, wanted: int | None) -> tuple[dict[str, int], list[str]]:
    """How long each of a dataset's own shards should be, as far as that is known, and which are missing."""
    present = {_number(path): path.name for path in shards}
    if wanted and wanted // size < 10**6:  # more is nonsense
        lengths = dict(enumerate(shard_lengths(wanted, size)))
    else:  # all but the last are full
        lengths = dict.fromkeys(range(max(present)), size)
    gaps = [f"shard-{index:05d}.h5" for index in lengths if index not in present]
    return {present[index]: length for index, length in lengths.items() if index in present}, gaps


def _check_splits(
    folder: Path, like: Model | None, family: int, clips: dict[Path, int], filling: bool
) -> list[str]:
    """What is wrong with the splits over shards of so many `clips`."""
    problems, taken = [], []
    for split in SPLITS:
        path = folder / f"{split}.h5"
        if not path.is_file():
            problems += [] if filling else [f"{path.name}: missing; {MAKE_AGAIN}"]
            continue
        try:
            with reading(path) as file:
                pieces = read_pieces(file)
                faults = list(_split_faults(file, pieces, like))
        except DamagedFile as error:
            problems.append(f"{error}; delete it and {MAKE_AGAIN}")
            continue
        except DatasetError as error:
            problems.append(f"{error}; then check again")
            continue
        shown = sum(piece.count for piece in pieces)
        if shown % family:
            faults.append(f"{shown} clips are not whole families of {family}")
        for piece in pieces:
            if found := find_source(path, piece.file):  # what is missing is named elsewhere
                found, stop = found.resolve(), piece.first + piece.count
                taken.append((str(found), piece.first, stop, split))
                if clips.get(found) and stop > clips[found]:
                    faults.append(f"shows {stop} clips of {piece.file}, which holds {clips[found]}")
        problems += [f"{path.name}: {fault}; delete it and {MAKE_AGAIN}" for fault in faults]
    taken.sort()
    for (shard, _, stop, one), (other_shard, first, _, other) in itertools.pairwise(taken):
        if shard == other_shard and first < stop:
            problems.append(
                f"{one}.h5 and {other}.h5: both hold clip {first} of {Path(shard).name}; delete them and {MAKE_AGAIN}"
            )
    return problems


def _split_faults(file: h5py.File, pieces: list[Piece], like: Model | None) -> Iterator[str]:
    """Where a split is not as its shards are."""
    fields = fields_of(file)
    for name, (shape, _) in fields.items():
        if read_pieces(file, name) != pieces:
            yield f"shows other clips in {name} than in param_array"
        if like and (name not in like.fields or like.fields[name][0] != shape):
            yield f"its {name} {shape} is not that of the shards"
    for name, value in like.recipe.items() if like else ():
        if str(file.attrs.get(name)) != value:
            yield f"its attribute {name} is not that of the shards"
    if "audible" in file.attrs and like and like.space:
        audible = np.asarray(file.attrs["audible"])
        if audible.shape != (len(list(like.space)),) or not np.isfinite(audible).all():
            yield "its attribute audible is not a number for each parameter"


def _check_shard(
    path: Path, like: Model | None, length: int | None, again: str
) -> tuple[list[str], np.ndarray]:
    """What is wrong with one shard, and a hash of each of its vectors."""
    faults, hashes = [], []
    try:
        with reading(path) as file:
            faults += _recipe_faults(file, like)
            fields = fields_of(file)
            lengths = {name: len(file[name]) for name in fields}
            if not like or fields != like.fields:
                faults.append(
                    f"has other fields than others, or of other shapes: {', '.join(fields) or 'none'}"
                )
            elif (
                len(set(lengths.values())) > 1 or (length or lengths["param_array"]) != lengths["param_array"]
            ):
                faults.append(f"holds {lengths} clips, {length or 'all the same number'} expected")
            else:
                for name in fields:
                    faults += _field_faults(file[name], name, like.space, hashes)
    except DamagedFile as error:
        faults.append(f"not readable, cut short or damaged ({error.__cause__ or error})")
    except DatasetError as error:  # out of reach, which is no reason to delete it
        return [f"{error}; then check again"], np.array(hashes, np.int64)
    return [f"{fault}; {again}" for fault in faults], np.array(hashes, np.int64)


def _recipe_faults(file: h5py.File, like: Model | None) -> Iterator[str]:
    for name in RECIPE if like else ():
        value, other = str(file.attrs.get(name)), like.recipe.get(name, "None")
        if value != other:
            values = "" if name == "space" else f" ({value}, not {other})"
            yield f"made with another {name} than {like.path.name}{values}"


def _field_faults(
    dataset: h5py.Dataset, name: str, space: ParameterSpace | None, hashes: list[int]
) -> Iterator[str]:
    """What is wrong with one field of a shard; only the first clip of each kind is named."""
    lowest, highest = RANGES.get(name, (-np.inf, np.inf))
    if dataset.chunks and dataset.id.get_num_chunks() < math.prod(
        -(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks)
    ):
        yield f"{name} was never written to its end"
        return
    crc = 0
    for first in range(0, len(dataset), CHUNK):
        try:
            part = dataset[first : first + CHUNK]
        except OSError as error:
            if error.errno:
                raise
            reason = "its checksum is wrong" if dataset.fletcher32 else f"{error}"
            yield f"{name} of clips {first} to {min(first + CHUNK, len(dataset)) - 1} can't be read ({reason})"
            return
        crc = zlib.crc32(np.ascontiguousarray(part), crc)
        if part.dtype.kind == "f":
            flat = torch.from_numpy(
                part.astype(part.dtype.newbyteorder("="), copy=False).reshape(len(part), -1)
            )
            low, high = (extreme.float().numpy() for extreme in flat.aminmax(dim=1))  # NaN if one is
            for what, wrong in (
                ("holds NaN or infinite numbers", ~(np.isfinite(low) & np.isfinite(high))),
                (f"is outside [{lowest:.3g}, {highest:.3g}]", (low < lowest) | (high > highest)),
            ):
                if wrong.any():
                    yield f"{name} of clip {first + wrong.argmax()} {what}"
                    return
        if name == "param_array":
            hashes += [hash(row.tobytes()) for row in part]
            fault = _vectors_fault(part, space)
            if fault:
                yield f"{name} of clip {first + fault[0]} {fault[1]}"
                return
    if dataset.attrs.get("crc32", crc) != crc:
        yield f"{name} is damaged: its checksum is wrong"


def _vectors_fault(vectors: np.ndarray, space: ParameterSpace | None) -> tuple[int, str] | None:
    """The first row that was never written or has a categorical parameter with other than one choice."""
    empty = ~vectors.any(axis=1)
    if empty.any():
        return int(empty.argmax()), "was never written"
    for p in space or ():
        if p.kind == "categorical":
            block = vectors[:, space.columns[p.name]]
            wrong = (block.max(axis=1) != 1) | (np.count_nonzero(block, axis=1) != 1)
            if wrong.any():
                return int(wrong.argmax()), f"has not exactly one choice of {p.name}"
    return None


def _duplicates(hashes: dict[Path, np.ndarray], family: int, size: int) -> list[str]:
    """Vectors that another family has too; in shards of `size` clips, 0 if they follow each other in any way."""
    clips = list(itertools.accumulate(map(len, hashes.values()), initial=0))
    starts = [_number(path) * size if size else at for path, at in zip(hashes, clips)]
    of_family = np.concatenate(
        [(start + np.arange(len(found))) // family for start, found in zip(starts, hashes.values())]
    )
    found = np.concatenate(list(hashes.values()))
    order = found.argsort(kind="stable")
    equal = (found[order][1:] == found[order][:-1]) & (of_family[order][1:] != of_family[order][:-1])
    if not equal.any():
        return []

    def where(clip: int) -> str:
        shard = int(np.searchsorted(clips, clip, side="right")) - 1
        return f"clip {clip - clips[shard]} of {list(hashes)[shard].name}"

    at = int(equal.argmax())
    return [
        f"{int(equal.sum())} clips have the parameters of another, such as {where(order[at])} and "
        f"{where(order[at + 1])}; they were not drawn by one seed: make the dataset again in an empty folder"
    ]


def _check_stats(folder: Path, readable: bool) -> list[str]:
    path, again = folder / "stats.npz", f"delete it and {MAKE_AGAIN}"
    if not path.is_file():
        return [f"stats.npz: missing, so the dataset is not complete; {MAKE_AGAIN}"]
    try:
        with np.load(path) as stats:
            kept = [stats[name].astype(np.float32) for name in ("mean", "std")]
    except Exception as error:  # NumPy raises a dozen kinds
        return [f"stats.npz: not readable ({error}); {again}"]
    if not readable:  # what it should be can't be told
        return []
    try:
        computed = stats_of(folder)
    except DatasetError as error:
        return [str(error)]
    for name, old, new in zip(("mean", "std"), kept, computed):
        if old.shape != new.shape:
            return [f"stats.npz: {name} has shape {old.shape}, the clips {new.shape}; {again}"]
        gap = np.abs(old - new).max()
        if not gap <= STATS_ERROR:
            return [f"stats.npz: {name} is up to {gap:.2g} dB from that of the training clips; {again}"]
    return []
