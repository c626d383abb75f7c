"""What a dataset folder holds, and whether all of it is as it should be."""

from __future__ import annotations

import hashlib
import itertools
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from synthnb.data.shards import (
    FIELDS,
    SPLITS,
    UNREADABLE,
    DatasetError,
    fields_of,
    find_source,
    need_decompressors,
    open_split,
    read_pieces,
    read_space,
    shard_lengths,
    stats_of,
)
from synthnb.space import ParameterSpace

CHUNK = 64  # clips read at once
RANGES = {"mel_spec": (-80.1, 0.1), "param_array": (-1e-6, 1 + 1e-6)}  # dB below a clip's maximum; a vector's
STATS_ERROR = 0.05  # dB
RECIPE = (
    "space",
    "seed",
    "loudness_floor",
    "keep",
    "shard_size",
    "edits",
    "sample_rate",
    "seconds",
    "velocity",
)


def describe(folder: str | Path, space: str | Path | None = None) -> list[str]:
    """Space, clips, fields, bytes, recipe and versions of a dataset, as lines to print; no clip is read.

    `space` is its name or path, for a dataset that does not say it. Raises `DatasetError` if a split is missing.
    """
    folder, clips = Path(folder), {}
    for split in ("val", "test", "train"):
        with open_split(folder / f"{split}.h5") as file:
            clips[split] = len(file["param_array"])
    shards, missing = shards_of(folder)
    with open_split(folder / "train.h5") as file:
        fields, attributes = fields_of(file), dict(file.attrs)
        said = "space" in attributes or space is not None
        found = read_space(file, space) if said else None
    with open_split(shards[0]) as shard:
        checked = [
            name
            for name in fields
            if name in shard and (shard[name].fletcher32 or "crc32" in shard[name].attrs)
        ]
    size = sum(path.stat().st_size for path in {*shards, *folder.iterdir()} if path.is_file())
    elsewhere = sum(path.parent.resolve() != folder.resolve() for path in shards)
    lines = [
        f"{folder}: {clips['train']:,} train, {clips['val']:,} val and {clips['test']:,} test clips",
        f"{len(shards)} shards" + (f", {elsewhere} of them in other folders" if elsewhere else "")
        + f", {size / 1e6:,.1f} MB" + (f"; {len(missing)} missing" if missing else ""),
    ]  # fmt: skip
    if found:
        counts = f"{len(found.parameters)} parameters, vectors of {found.width} numbers, {found.seconds:g} s"
        lines.append(f"space '{found.name}' for {found.synth}: {counts}")
    else:
        lines.append("space: not in its attributes; --space names it")
    for name, (shape, dtype) in fields.items():
        sums = "checksums" if name in checked else "no checksums"
        lines.append(f"  {name:12s} {dtype} ({', '.join(['clips', *map(str, shape)])}), {sums}")
    recipe = [f"{name} {attributes[name]}" for name in RECIPE[1:] if name in attributes]
    lines.append(f"recipe: {', '.join(recipe) or 'not in its attributes'}")
    lines.append(f"versions: {attributes.get('versions', 'not in its attributes')}")
    return lines


def shards_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The files that hold a dataset's clips, its own or, of a subset, those of others; and names of those missing."""
    shards, missing = {path.resolve(): path for path in sorted(folder.glob("shard-*.h5"))}, set()
    for split in SPLITS:
        path = folder / f"{split}.h5"
        try:
            with h5py.File(path, "r") as file:
                for piece in read_pieces(file):
                    found = find_source(path, piece.file)
                    if found:
                        shards.setdefault(found.resolve(), found)
                    else:
                        missing.add(piece.file)
        except UNREADABLE:
            continue  # `check` names it
    return list(shards.values()), sorted(missing)


def check(folder: str | Path, space: str | Path | None = None) -> list[str]:
    """Read every clip of a dataset once and its spectrograms twice; returns the problems found, one line each.

    Shards: readable, with the checksums of those that have any; as long as they should be, none missing, none half
    written; of one recipe. Clips: finite, spectrograms and vectors in their ranges, one-hot blocks whole, none never
    written, none twice (an edit may equal its clip). Splits: readable, of different clips, with whole families.
    `stats.npz`: that of the training clips. Memory is that of 64 clips, and 16 bytes for every clip.

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
    like = _first_readable(shards)
    attributes = like["attributes"]
    family = 1 + int(attributes.get("edits", 0))
    again = (
        "delete it and run the same generate command again, which renders the same clips"
        if "seed" in attributes
        else "get it again from where it came"
    )
    found = _space(like, space)
    splits, problems = _check_splits(folder, family)
    problems += [f"{path.name}: left by an interrupted run, or one is going on; run the same command again"
                 for path in sorted(folder.glob("*.partial*"))]  # fmt: skip
    own = all(path.parent == folder for path in shards) and "shard_size" in attributes
    lengths = {}
    if own:
        lengths, gaps = _expected(shards, attributes["shard_size"], splits)
        missing = sorted({*missing, *gaps})
    problems += [f"{name}: missing; run the same generate command again" if own else
                 f"{name}: missing; put it back where it was" for name in missing]  # fmt: skip
    digests, families = [], []
    start = 0
    for path in shards:
        if own:
            start = _number(path) * int(attributes["shard_size"])
        hashes: list[int] = []
        faults = list(_check_shard(path, like, found, lengths.get(path.name), hashes))
        problems += [f"{path.name}: {fault}; {again}" for fault in faults]
        digests.append(np.array(hashes, np.uint64))
        families.append((start + np.arange(len(hashes))) // family)
        start += len(hashes)
    problems += _duplicates(digests, families, shards)
    problems += _check_stats(folder, readable=len(splits) == len(SPLITS) and not problems)
    return problems


def _number(shard: Path) -> int:
    return int(re.search(r"\d+", shard.stem).group())


def _first_readable(shards: list[Path]) -> dict:
    """Path, fields and attributes of the shard that the others are held to."""
    for path in shards:
        try:
            with h5py.File(path, "r") as file:
                need_decompressors(file)
                fields = fields_of(file)
                if fields:
                    return {"path": path, "fields": fields, "attributes": dict(file.attrs)}
        except UNREADABLE as error:
            if isinstance(error, DatasetError):
                raise
    return {"path": None, "fields": {}, "attributes": {}}


def _space(like: dict, space: str | Path | None) -> ParameterSpace | None:
    if not like["fields"] or ("space" not in like["attributes"] and space is None):
        return None
    with h5py.File(like["path"], "r") as file:
        return read_space(file, space)


def _expected(
    shards: list[Path], shard_size: int, splits: dict[str, int]
) -> tuple[dict[str, int], list[str]]:
    """How long each of a dataset's own shards should be, as far as its splits tell, and which are missing."""
    present = {_number(path): path.name for path in shards}
    if len(splits) == len(SPLITS):
        wanted = dict(enumerate(shard_lengths(sum(splits.values()), int(shard_size))))
    else:  # all but the last are full
        wanted = dict.fromkeys(range(max(present)), int(shard_size))
    gaps = [f"shard-{index:05d}.h5" for index in wanted if index not in present]
    return {present[index]: length for index, length in wanted.items() if index in present}, gaps


def _check_splits(folder: Path, family: int) -> tuple[dict[str, int], list[str]]:
    """Clips of each split that can be read, and what is wrong with them."""
    clips, problems, taken = {}, [], []
    again = "run the same command again that made the dataset"
    for split in SPLITS:
        path = folder / f"{split}.h5"
        if not path.is_file():
            problems.append(f"{path.name}: missing; {again}")
            continue
        try:
            with h5py.File(path, "r") as file:
                pieces = read_pieces(file)
        except UNREADABLE as error:
            problems.append(f"{path.name}: not readable ({error}); delete it and {again}")
            continue
        clips[split] = sum(piece.count for piece in pieces)
        for piece in pieces:
            if found := find_source(path, piece.file):  # what is missing was named before
                taken.append((str(found.resolve()), piece.first, piece.first + piece.count, split))
        if clips[split] % family:
            problems.append(f"{path.name}: {clips[split]} clips are not whole families of {family}; {again}")
    taken.sort()
    for (shard, _, stop, one), (other_shard, first, _, other) in itertools.pairwise(taken):
        if shard == other_shard and first < stop:
            problems.append(
                f"{one}.h5 and {other}.h5: both hold clip {first} of {Path(shard).name}; delete them and {again}"
            )
    return clips, problems


def _check_shard(
    path: Path, like: dict, space: ParameterSpace | None, length: int | None, hashes: list[int]
) -> Iterator[str]:
    """What is wrong with one shard. A hash of each of its vectors is added to `hashes`."""
    try:
        with h5py.File(path, "r") as file:
            for name in RECIPE:
                if str(file.attrs.get(name)) != str(like["attributes"].get(name)):
                    values = (
                        ""
                        if name == "space"
                        else f" ({file.attrs.get(name)}, not {like['attributes'].get(name)})"
                    )
                    yield f"made with another {name} than {like['path'].name}{values}"
            if fields_of(file) != like["fields"]:
                yield f"has other fields than {like['path'].name}, or of other shapes: {_names(file)}"
                return
            lengths = {name: len(file[name]) for name in like["fields"]}
            if len(set(lengths.values())) > 1 or (length or lengths["param_array"]) != lengths["param_array"]:
                yield f"holds {lengths} clips, {length or 'all the same number'} expected"
                return
            for name in like["fields"]:
                yield from _check_field(file[name], name, space, hashes)
    except UNREADABLE as error:
        yield f"not readable, cut short or damaged ({error})"


def _names(file: h5py.File) -> str:
    return ", ".join(name for name in FIELDS if name in file) or "none"


def _check_field(
    dataset: h5py.Dataset, name: str, space: ParameterSpace | None, hashes: list[int]
) -> Iterator[str]:
    """What is wrong with one field of a shard; only the first clip of each kind is named."""
    lowest, highest = RANGES.get(name, (-np.inf, np.inf))
    crc = 0
    for first in range(0, len(dataset), CHUNK):
        try:
            part = dataset[first : first + CHUNK]
        except OSError as error:
            reason = "its checksum is wrong" if dataset.fletcher32 else f"{error}"
            yield f"{name} of clips {first} to {min(first + CHUNK, len(dataset)) - 1} can't be read ({reason})"
            return
        crc = zlib.crc32(np.ascontiguousarray(part), crc)
        if part.dtype.kind != "f":
            continue
        flat = torch.from_numpy(part.reshape(len(part), -1))
        low, high = (extreme.float().numpy() for extreme in flat.aminmax(dim=1))  # NaN if one is
        for what, wrong in (
            ("holds NaN or infinite numbers", ~(np.isfinite(low) & np.isfinite(high))),
            (f"is outside [{lowest:.3g}, {highest:.3g}]", (low < lowest) | (high > highest)),
        ):
            if wrong.any():
                yield f"{name} of clip {first + wrong.argmax()} {what}"
                return
        if name == "param_array":
            hashes += [
                int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
                for row in part
            ]
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


def _duplicates(digests: list[np.ndarray], families: list[np.ndarray], shards: list[Path]) -> list[str]:
    edges = np.cumsum([0, *map(len, digests)])
    hashes, families = np.concatenate(digests), np.concatenate(families)
    order = hashes.argsort(kind="stable")
    equal = (hashes[order][1:] == hashes[order][:-1]) & (families[order][1:] != families[order][:-1])
    if not equal.any():
        return []

    def where(clip: int) -> str:
        shard = int(np.searchsorted(edges, clip, side="right")) - 1
        return f"clip {clip - edges[shard]} of {shards[shard].name}"

    at = int(equal.argmax())
    return [
        f"{int(equal.sum())} clips have the parameters of another, such as {where(order[at])} and "
        f"{where(order[at + 1])}; they were not drawn by one seed: make the dataset again in an empty folder"
    ]


def _check_stats(folder: Path, readable: bool) -> list[str]:
    path, again = folder / "stats.npz", "delete it and run the same command again that made the dataset"
    if not path.is_file():
        return ["stats.npz: missing, so the dataset is not complete; run the same command again that made it"]
    try:
        with np.load(path) as stats:
            kept = stats["mean"], stats["std"]
    except (*UNREADABLE, EOFError, zipfile.BadZipFile) as error:
        return [f"stats.npz: not readable ({error}); {again}"]
    if not readable:  # what it should be can't be told
        return []
    for name, old, new in zip(("mean", "std"), kept, stats_of(folder)):
        if old.shape != new.shape:
            return [f"stats.npz: {name} has shape {old.shape}, the clips {new.shape}; {again}"]
        gap = np.abs(old - new).max()
        if not gap <= STATS_ERROR:
            return [f"stats.npz: {name} is up to {gap:.2g} dB from that of the training clips; {again}"]
    return []
